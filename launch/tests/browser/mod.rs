//! A real Chromium without a window, driven over its DevTools protocol: JSON messages with a zero byte after each, through
//! the pipes 3 and 4 of the process. No port is opened.

use std::cell::{Cell, RefCell};
use std::ffi::OsString;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};

use base64::Engine;
use serde_json::{Value, json};

use crate::stage::{PATIENCE, wait_until};

/// Names it by its path, where it is not found by itself; then it must be there.
const BROWSER: &str = "LOCKSTEP_BROWSER";
const NAMES: [&str; 5] = [
    "chromium-headless-shell",
    "chromium",
    "chromium-browser",
    "google-chrome",
    "chrome-headless-shell",
];

/// The browser of this machine, if it has one.
pub(crate) fn installed() -> Option<OsString> {
    if let Some(named) = std::env::var_os(BROWSER) {
        return Some(named);
    }
    let path = std::env::var_os("PATH")?;
    let places: Vec<_> = std::env::split_paths(&path)
        .flat_map(|folder| NAMES.map(|name| folder.join(name)))
        .collect();
    places.into_iter().find(|place| place.is_file()).map(Into::into)
}

/// A started browser with one page. Ended when dropped.
pub(crate) struct Browser {
    child: Child,
    to: RefCell<ChildStdin>,
    from: Receiver<Value>,
    next: Cell<u64>,
    session: String,
    is_loaded: Cell<bool>,
    /// What went wrong in the page: its console's errors and warnings, exceptions, requests that failed.
    pub(crate) complaints: RefCell<Vec<String>>,
    _profile: tempfile::TempDir,
}

impl Browser {
    pub(crate) fn start(program: &OsString) -> Browser {
        let profile = tempfile::tempdir().unwrap();
        // The shell gives it the pipes at the numbers that it expects.
        let mut child = Command::new("sh")
            .args(["-c", "exec \"$0\" \"$@\" 3<&0 4>&1 >/dev/null </dev/null"])
            .arg(program)
            .args(["--headless", "--remote-debugging-pipe", "--no-sandbox", "--disable-gpu"])
            .args([
                "--no-first-run",
                "--disable-dev-shm-usage",
                "--hide-scrollbars",
                "--mute-audio",
            ])
            // It speaks to the coordinator and to nobody else.
            .args([
                "--disable-background-networking",
                "--disable-component-update",
                "--no-default-browser-check",
            ])
            .args(["--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"])
            .arg(format!("--user-data-dir={}", profile.path().display()))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let (sender, from) = channel();
        let output = BufReader::new(child.stdout.take().unwrap());
        std::thread::spawn(move || {
            for message in output.split(0) {
                let Ok(message) = message else { return };
                let message = serde_json::from_slice(&message).unwrap();
                if sender.send(message).is_err() {
                    return;
                }
            }
        });
        let mut browser = Browser {
            to: RefCell::new(child.stdin.take().unwrap()),
            child,
            from,
            next: Cell::new(1),
            session: String::new(),
            is_loaded: Cell::new(false),
            complaints: RefCell::new(Vec::new()),
            _profile: profile,
        };
        let target = browser.call("Target.createTarget", json!({ "url": "about:blank" }));
        let target = json!({ "targetId": target["targetId"], "flatten": true });
        let session = browser.call("Target.attachToTarget", target);
        browser.session = session["sessionId"].as_str().unwrap().to_owned();
        for domain in ["Page", "Runtime", "Log", "Network"] {
            browser.call(&format!("{domain}.enable"), json!({}));
        }
        browser
    }

    /// Calls a method and waits for its answer.
    pub(crate) fn call(&self, method: &str, parameters: Value) -> Value {
        let id = self.next.replace(self.next.get() + 1);
        let mut message = json!({ "id": id, "method": method, "params": parameters });
        if !self.session.is_empty() {
            message["sessionId"] = json!(self.session);
        }
        let mut to = self.to.borrow_mut();
        to.write_all(message.to_string().as_bytes()).unwrap();
        to.write_all(&[0]).unwrap();
        to.flush().unwrap();
        drop(to);
        loop {
            let message = match self.from.recv_timeout(PATIENCE) {
                Ok(message) => message,
                Err(RecvTimeoutError::Timeout) => panic!("the browser gave no answer to {method}"),
                Err(RecvTimeoutError::Disconnected) => panic!("the browser has gone before it answered {method}"),
            };
            if message["id"] == id {
                assert!(message.get("error").is_none(), "{method}: {}", message["error"]);
                return message["result"].clone();
            }
            self.note(&message);
        }
    }

    fn note(&self, message: &Value) {
        let parameters = &message["params"];
        let complaint = match message["method"].as_str() {
            Some("Page.loadEventFired") => return self.is_loaded.set(true),
            Some("Runtime.exceptionThrown") => parameters["exceptionDetails"].to_string(),
            Some("Runtime.consoleAPICalled") if parameters["type"] != "log" => parameters["args"].to_string(),
            Some("Log.entryAdded") => parameters["entry"].to_string(),
            Some("Network.loadingFailed") if parameters["canceled"] != true => parameters.to_string(),
            _ => return,
        };
        self.complaints.borrow_mut().push(complaint);
    }

    /// A screen of this size, as a phone where it is narrow.
    pub(crate) fn screen(&self, width: u32, height: u32, is_dark: bool) {
        let is_phone = width < 600;
        let metrics = json!({
            "width": width, "height": height, "deviceScaleFactor": if is_phone { 2 } else { 1 }, "mobile": is_phone,
        });
        self.call("Emulation.setDeviceMetricsOverride", metrics);
        let scheme = if is_dark { "dark" } else { "light" };
        let media = json!({ "features": [{ "name": "prefers-color-scheme", "value": scheme }] });
        self.call("Emulation.setEmulatedMedia", media);
    }

    pub(crate) fn open(&self, url: &str) {
        self.is_loaded.set(false);
        let answer = self.call("Page.navigate", json!({ "url": url }));
        assert!(answer.get("errorText").is_none(), "{url}: {answer}");
        // Before that, questions may be asked of the page that was there.
        while !self.is_loaded.get() {
            let message = self.from.recv_timeout(PATIENCE);
            self.note(&message.unwrap_or_else(|error| panic!("{url} was not loaded: {error}")));
        }
    }

    /// The value of an expression in the page.
    pub(crate) fn value(&self, expression: &str) -> Value {
        let parameters = json!({ "expression": expression, "returnByValue": true, "awaitPromise": true });
        let answer = self.call("Runtime.evaluate", parameters);
        assert!(
            answer.get("exceptionDetails").is_none(),
            "{expression}: {}",
            answer["exceptionDetails"]
        );
        answer["result"]["value"].clone()
    }

    /// The text of the first element that a selector finds; empty where there is none.
    pub(crate) fn text(&self, selector: &str) -> String {
        let text = self.value(&format!("document.querySelector({})?.innerText ?? ''", json!(selector)));
        text.as_str().unwrap().to_owned()
    }

    /// Waits until an expression is true.
    pub(crate) fn wait_for(&self, what: &str, expression: &str) {
        let start = std::time::Instant::now();
        wait_until(what, || {
            let is_true = self.value(expression) == true;
            // Said before the patience ends, for whoever has to find out why.
            if !is_true && start.elapsed() + std::time::Duration::from_secs(1) > PATIENCE {
                let complaints = self.complaints.borrow();
                println!("no sign of it: {what}; complaints {complaints:?}; the page says:\n{}", self.text("body"));
            }
            is_true
        });
    }

    /// Clicks into the middle of an element, as a hand does.
    pub(crate) fn click(&self, selector: &str) {
        let [x, y] = self.middle(selector);
        for kind in ["mousePressed", "mouseReleased"] {
            self.mouse(kind, x, y);
        }
    }

    /// Draws with the pressed button from one share of an element's width to another.
    pub(crate) fn drag(&self, selector: &str, from: f64, to: f64) {
        let edges = self.value(&format!(
            "(() => {{ const box = document.querySelector({}).getBoundingClientRect(); return [box.left, box.width, box.top + box.height / 2]; }})()",
            json!(selector)
        ));
        let [left, width, y] = [0, 1, 2].map(|at| edges[at].as_f64().unwrap());
        self.mouse("mousePressed", left + width * from, y);
        self.mouse("mouseMoved", left + width * (from + to) / 2.0, y);
        self.mouse("mouseMoved", left + width * to, y);
        self.mouse("mouseReleased", left + width * to, y);
    }

    fn middle(&self, selector: &str) -> [f64; 2] {
        let middle = self.value(&format!(
            "(() => {{ const one = document.querySelector({}); one.scrollIntoView({{ block: 'center' }}); const box = one.getBoundingClientRect(); return [box.left + box.width / 2, box.top + box.height / 2]; }})()",
            json!(selector)
        ));
        [0, 1].map(|at| middle[at].as_f64().unwrap())
    }

    fn mouse(&self, kind: &str, x: f64, y: f64) {
        let buttons = u8::from(kind != "mouseReleased");
        let event = json!({ "type": kind, "x": x, "y": y, "button": "left", "buttons": buttons, "clickCount": 1 });
        self.call("Input.dispatchMouseEvent", event);
    }

    /// Presses and releases a key.
    pub(crate) fn key(&self, key: &str) {
        let (code, text) = match key {
            "Tab" => (9, ""),
            "Enter" => (13, "\r"),
            "Escape" => (27, ""),
            "ArrowLeft" => (37, ""),
            _ => (0, key),
        };
        for kind in ["keyDown", "keyUp"] {
            let mut event = json!({ "type": kind, "key": key, "windowsVirtualKeyCode": code });
            if kind == "keyDown" && !text.is_empty() {
                event["text"] = json!(text);
            }
            self.call("Input.dispatchKeyEvent", event);
        }
    }

    /// Keeps what the page looks like, from top to bottom.
    pub(crate) fn picture(&self, path: &Path) {
        let shot = self.call(
            "Page.captureScreenshot",
            json!({ "format": "png", "captureBeyondViewport": true }),
        );
        let bytes = base64::engine::general_purpose::STANDARD
            .decode(shot["data"].as_str().unwrap())
            .unwrap();
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, bytes).unwrap();
    }

    /// Nothing in the page complained.
    pub(crate) fn is_content(&self) {
        // What was said before the answer to this is heard.
        self.value("0");
        assert_eq!(self.complaints.borrow().as_slice(), [] as [String; 0]);
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        // The browser ends its own children when its pipe is closed; it is waited for, so that its profile can go.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
