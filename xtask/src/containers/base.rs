//! The two images on which the stages stand: as they are pinned, or, where no registry of images is reached, the nearest that
//! can be made on this machine: Debian 12 by debootstrap, and the same with the Rust that is installed here.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::engine::Engine;
use crate::failure::{Failure, on_path};
use crate::process;
use crate::setup::tools;
use crate::workspace::Workspace;

/// The release of Debian that the pinned images are.
const RELEASE: &str = "bookworm";
const DEBIAN: &str = "lockstep-debian:12";
const RUST: &str = "lockstep-rust:12";
/// Where this machine keeps the authorities that it trusts.
const AUTHORITIES: &str = "/etc/ssl/certs/ca-certificates.crt";

/// The image for what runs.
pub(super) fn debian(engine: &Engine, pinned: &str) -> Result<String, Failure> {
    if is_fetched(engine, pinned)? {
        return Ok(pinned.to_owned());
    }
    if !is_there(engine, DEBIAN)? {
        let folder = Folder::new("debian")?;
        bootstrap(&folder.path)?;
        import(engine, &folder.path, &[], DEBIAN)?;
    }
    Ok(DEBIAN.to_owned())
}

/// The image for building.
pub(super) fn rust(engine: &Engine, workspace: &Workspace, pinned: &str) -> Result<String, Failure> {
    if is_fetched(engine, pinned)? {
        return Ok(pinned.to_owned());
    }
    if !is_there(engine, RUST)? {
        let folder = Folder::new("rust")?;
        bootstrap(&folder.path)?;
        let mut rustc = Command::new("rustc");
        rustc.args(["--print", "sysroot"]).current_dir(&workspace.root);
        let sysroot = process::text_of("`rustc --print sysroot`", &mut rustc)?;
        let target = folder.path.join("usr/local/rust");
        let mut copy = Command::new("cp");
        process::run("`cp`", copy.arg("-a").arg(sysroot.trim()).arg(&target))?;
        // Whoever stands between this machine and its registries is known by the machine, and not by a plain Debian.
        let mut variables = vec!["ENV PATH=/usr/local/rust/bin:/usr/sbin:/usr/bin:/sbin:/bin".to_owned()];
        if Path::new(AUTHORITIES).is_file() {
            let place = folder.path.join("etc/authorities.crt");
            fs::copy(AUTHORITIES, &place).map_err(on_path("write", &place))?;
            variables.extend(["CARGO_HTTP_CAINFO", "PIP_CERT"].map(|name| format!("ENV {name}=/etc/authorities.crt")));
        }
        import(engine, &folder.path, &variables, RUST)?;
    }
    Ok(RUST.to_owned())
}

/// Whether an image is here, or comes here now.
fn is_fetched(engine: &Engine, image: &str) -> Result<bool, Failure> {
    if is_there(engine, image)? {
        return Ok(true);
    }
    let mut pull = engine.docker();
    pull.args(["pull", "--quiet", image]).stderr(Stdio::piped());
    let output = process::captured("`docker pull`", &mut pull)?;
    if !output.status.success() {
        println!(
            "{image} cannot be fetched, so an image is made on this machine for it ({})",
            String::from_utf8_lossy(&output.stderr).trim()
        );
    }
    Ok(output.status.success())
}

fn is_there(engine: &Engine, image: &str) -> Result<bool, Failure> {
    let mut inspect = engine.docker();
    inspect.args(["image", "inspect", image]).stderr(Stdio::null());
    Ok(process::captured("`docker image inspect`", &mut inspect)?
        .status
        .success())
}

/// A plain Debian in a folder, from the mirror that apt uses here.
fn bootstrap(folder: &Path) -> Result<(), Failure> {
    let has_it = || Path::new("/usr/sbin/debootstrap").is_file();
    if !has_it() && tools::may_install() {
        tools::install(&["debootstrap"])?;
    }
    if !has_it() || !rustix::process::geteuid().is_root() {
        return Err(Failure::input(
            "neither a registry of images nor a Debian of this machine's making is to be had; run this as root where \
             debootstrap is, or name an image with --base",
        ));
    }
    let mut command = Command::new("/usr/sbin/debootstrap");
    command.args(["--variant=minbase", RELEASE]).arg(folder);
    process::run("`debootstrap`", command.stdout(Stdio::null()))
}

/// A folder as an image.
fn import(engine: &Engine, folder: &Path, changes: &[String], name: &str) -> Result<(), Failure> {
    let mut tar = Command::new("tar");
    tar.arg("--directory").arg(folder).args(["--create", "."]);
    let mut tar = tar
        .stdout(Stdio::piped())
        .spawn()
        .map_err(|error| Failure::work(format!("cannot start tar: {error}")))?;
    let mut import = engine.docker();
    import.arg("import");
    for change in changes {
        import.args(["--change", change]);
    }
    import.args(["-", name]);
    if let Some(stream) = tar.stdout.take() {
        import.stdin(stream);
    }
    let imported = process::run("`docker import`", &mut import);
    let status = tar
        .wait()
        .map_err(|error| Failure::work(format!("tar cannot be waited for: {error}")))?;
    imported?;
    match status.success() {
        true => Ok(()),
        false => Err(Failure::work(format!(
            "tar ended with {status}; the lines above say why"
        ))),
    }
}

/// A folder for temporary things, which goes with this value.
struct Folder {
    path: PathBuf,
}

impl Folder {
    fn new(name: &str) -> Result<Folder, Failure> {
        let path = std::env::temp_dir().join(format!("lockstep-{name}-{}", std::process::id()));
        fs::create_dir_all(&path).map_err(on_path("create", &path))?;
        Ok(Folder { path })
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.path) {
            println!("{} is left: {error}", self.path.display());
        }
    }
}
