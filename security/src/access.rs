//! Roles, and which one a call needs. A call that nobody has thought of is refused.

/// What a caller is there for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Role {
    /// Sees everything, changes nothing.
    Viewer,
    /// Sees everything and gives orders.
    Operator,
    /// Trains: has its own service and nothing else.
    Trainer,
}

impl Role {
    /// Every role.
    pub const ALL: [Role; 3] = [Role::Viewer, Role::Operator, Role::Trainer];

    /// The word for it, in token files and certificates.
    pub fn word(self) -> &'static str {
        match self {
            Role::Viewer => "viewer",
            Role::Operator => "operator",
            Role::Trainer => "trainer",
        }
    }

    /// The role of a word.
    pub fn of_word(word: &str) -> Option<Role> {
        Role::ALL.into_iter().find(|role| role.word() == word)
    }

    /// Whether it may make a call that needs `access`. An operator may all that a viewer may.
    pub fn may(self, access: Access) -> bool {
        match access {
            Access::Open => true,
            Access::Needs(role) => self == role || (self, role) == (Role::Operator, Role::Viewer),
            Access::Nobody => false,
        }
    }
}

impl std::fmt::Display for Role {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.word())
    }
}

impl std::str::FromStr for Role {
    type Err = String;

    fn from_str(word: &str) -> Result<Role, String> {
        Role::of_word(word).ok_or_else(|| "write trainer, operator or viewer".to_owned())
    }
}

/// What a call needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Nothing: the answer says nothing about the run.
    Open,
    /// This role.
    Needs(Role),
    /// It is no call of this coordinator.
    Nobody,
}

/// Who calls, as it was proved.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Identity {
    /// What for.
    pub role: Role,
    /// The name in the token file or in the certificate.
    pub name: String,
}

impl std::fmt::Display for Identity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {}", self.role, self.name)
    }
}

/// Calls of the control service that only look. Every other one is an operator's, so that a new call is refused to
/// viewers until it is named here.
const ONLY_LOOK: [&str; 4] = ["Status", "Watch", "Members", "Overview"];
/// Files of the web page. The data in it comes from `/api/`.
const PAGE: [&str; 4] = ["/", "/page.css", "/page.js", "/icon.svg"];

/// What a call needs, by its HTTP method and path. A call of a gRPC service has the path `/SERVICE/CALL`.
pub fn required(method: &str, path: &str) -> Access {
    let (service, call) = path
        .strip_prefix('/')
        .and_then(|path| path.split_once('/'))
        .unwrap_or(("", ""));
    let looks = matches!(method, "GET" | "HEAD");
    match (service, call) {
        ("lockstep.v1.Training", _) => Access::Needs(Role::Trainer),
        ("lockstep.v1.Control", call) if ONLY_LOOK.contains(&call) => Access::Needs(Role::Viewer),
        ("lockstep.v1.Control", _) => Access::Needs(Role::Operator),
        // Probes of Kubernetes cannot show a token, and all that they hear is that somebody serves.
        ("grpc.health.v1.Health", _) => Access::Open,
        ("grpc.reflection.v1.ServerReflection", _) => Access::Needs(Role::Viewer),
        ("api", "login" | "logout") if method == "POST" => Access::Open,
        ("api", _) if looks => Access::Needs(Role::Viewer),
        ("api", _) if method == "POST" => Access::Needs(Role::Operator),
        _ if looks && PAGE.contains(&path) => Access::Open,
        _ if looks && path == "/metrics" => Access::Needs(Role::Viewer),
        _ => Access::Nobody,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_operator_may_what_a_viewer_may_and_a_trainer_only_its_own() {
        use Role::{Operator, Trainer, Viewer};
        let may = |role: Role| Role::ALL.map(|needed| role.may(Access::Needs(needed)));
        assert_eq!(Role::ALL, [Viewer, Operator, Trainer]);
        assert_eq!(may(Viewer), [true, false, false]);
        assert_eq!(may(Operator), [true, true, false]);
        assert_eq!(may(Trainer), [false, false, true]);
        for role in Role::ALL {
            assert!(role.may(Access::Open) && !role.may(Access::Nobody));
            assert_eq!(role.word().parse(), Ok(role));
        }
        assert!("root".parse::<Role>().is_err());
    }

    #[test]
    fn calls_that_nobody_has_thought_of_are_refused_or_are_an_operators() {
        for (method, path, access) in [
            ("POST", "/lockstep.v1.Control/Erase", Access::Needs(Role::Operator)),
            (
                "POST",
                "/lockstep.v1.Control/Status/../Stop",
                Access::Needs(Role::Operator),
            ),
            ("POST", "/lockstep.v1.Control/", Access::Needs(Role::Operator)),
            ("GET", "/lockstep.v1.Control/Stop", Access::Needs(Role::Operator)),
            ("POST", "/lockstep.v2.Control/Status", Access::Nobody),
            ("POST", "/lockstep.v1.Parts/Fetch", Access::Nobody),
            ("POST", "/", Access::Nobody),
            ("GET", "/login", Access::Nobody),
            ("GET", "/api/login", Access::Needs(Role::Viewer)),
            ("PUT", "/api/pause", Access::Nobody),
            ("POST", "/api/pause", Access::Needs(Role::Operator)),
            ("POST", "/metrics", Access::Nobody),
            ("GET", "", Access::Nobody),
            ("GET", "//api/status", Access::Nobody),
        ] {
            assert_eq!(required(method, path), access, "{method} {path}");
        }
    }
}
