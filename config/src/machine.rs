//! Which machine this is: a number of a process means nothing on another one.

/// This machine since it was started, or the container on it whose processes have numbers of their own. None where the
/// system does not tell.
pub fn this_machine() -> Option<String> {
    let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?;
    let numbers = std::fs::read_link("/proc/self/ns/pid").ok()?;
    Some(format!("{} {}", boot.trim(), numbers.display()))
}
