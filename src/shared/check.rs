//! What a connection has to be good for before batches use it, and what an error reply means to the operator.
//!
//! The text of an error may contain anything, also a password that the server did not understand: only its code is shown.

use redis::{ErrorKind, RedisError, Value};

use super::store::RedisCommand;
use crate::config::Shared;

/// What a connection is checked for.
pub(super) struct ConnectionCheck {
    /// Commands for a new connection: each that the tier uses, in a form that leaves nothing behind.
    pub(super) commands: Vec<RedisCommand>,
    pub(super) cluster: bool,
    /// The keys of the login.
    login: &'static str,
}

/// A command that writes, and leaves nothing behind: a server that is full or lacks its replicas refuses it.
pub(super) fn write_probe(prefix: &str) -> RedisCommand {
    RedisCommand::new("SET", &format!("{prefix}0")).arg("").arg("XX").arg("PX").arg(1)
}

/// An error reply, and the command that it is for.
pub(super) struct Refusal<'c> {
    pub(super) command: &'static str,
    /// The error's first word, as `OOM`.
    pub(super) code: &'c str,
    /// Whether a missing right is that to the key.
    is_about_keys: bool,
}

/// The error replies to `commands`.
pub(super) fn refusals<'c>(commands: &'c [RedisCommand], replies: &'c [Value]) -> impl Iterator<Item = Refusal<'c>> {
    commands.iter().zip(replies).filter_map(|(command, reply)| {
        let Value::ServerError(error) = reply else { return None };
        let is_about_keys = error.details().is_some_and(|text| !text.contains(" to run the "));
        Some(Refusal { command: command.name, code: error.code(), is_about_keys })
    })
}

impl Refusal<'_> {
    /// Whether the server refuses whatever is written, and may be read from.
    pub(super) fn is_of_writes(&self) -> bool {
        matches!(self.code, "OOM" | "MISCONF" | "NOREPLICAS")
    }
}

impl ConnectionCheck {
    /// That of a server with items.
    pub(super) fn of_server(shared: &Shared) -> Self {
        // Two slots: a node of a Cluster refuses the two together.
        let [key, other] = ["0", "1"].map(|end| format!("{}{end}", shared.prefix));
        let of_key = |name| RedisCommand::new(name, &key);
        let mut commands = vec![
            of_key("EXPIRE").arg(1),
            of_key("MGET").arg(other),
            of_key("GET"),
            of_key("GETRANGE").arg(0).arg(0),
            of_key("STRLEN"),
            // Makes the key, which the last two commands remove.
            of_key("APPEND").arg(""),
            of_key("RENAME").arg(&*key),
            of_key("PEXPIRE").arg(1000),
            RedisCommand::script("return 1", [&*key].into_iter()),
            write_probe(&shared.prefix),
            of_key("DEL"),
        ];
        // Before a key of a slot that is being moved.
        commands.extend(shared.cluster.then(|| RedisCommand::without_key("ASKING")));
        // A Sentinel may not know yet that the master has changed.
        commands.extend(shared.sentinel.as_ref().map(|_| RedisCommand::without_key("ROLE")));
        Self { commands, cluster: shared.cluster, login: "shared.username and shared.password_file" }
    }

    /// That of a Sentinel.
    pub(super) fn of_sentinel() -> Self {
        let login = "shared.sentinel_username and shared.sentinel_password_file";
        Self { commands: Vec::new(), cluster: false, login }
    }

    /// # Errors
    /// Why batches cannot use the server, and what to change.
    pub(super) fn judge(&self, replies: &[Value]) -> Result<(), String> {
        let refusals: Vec<Refusal<'_>> = refusals(&self.commands, replies).collect();
        if let Some(reason) = self.why_unusable(&refusals) {
            return Err(reason);
        }
        // A full server has not made the key that is renamed.
        let is_unknown = |refusal: &&Refusal<'_>| refusal.code == "ERR" && refusal.command != "RENAME";
        match refusals.iter().find(is_unknown).map(|refusal| refusal.command) {
            None => {}
            Some("ASKING") => return Err("the server is no node of a Cluster: remove shared.cluster".to_owned()),
            Some(command) => {
                return Err(format!("the server does not know {command}: is it Redis or Valkey, and no Sentinel?"));
            }
        }
        if let Some(Refusal { code, .. }) = refusals.first().filter(|_| refusals.len() == replies.len()) {
            return Err(format!("the server answers with errors alone: {code}"));
        }
        let role = self.commands.iter().zip(replies).find(|(command, _)| command.name == "ROLE");
        match role {
            Some((_, Value::Array(role))) if role.first() != Some(&Value::BulkString(b"master".to_vec())) => {
                Err("the server says that it is no master".to_owned())
            }
            _ => Ok(()),
        }
    }

    /// Why a server with these error replies is of no use to batches; `None` if it may be, as one that is full.
    pub(super) fn why_unusable(&self, refusals: &[Refusal<'_>]) -> Option<String> {
        let refusals = || refusals.iter();
        let is_of_right = |refusal: &&Refusal<'_>| refusal.code == "NOPERM" && !refusal.is_about_keys;
        let lacks = refusals().filter(is_of_right).map(|refusal| format!("+{}", refusal.command.to_lowercase()));
        let lacks = lacks.collect::<Vec<_>>().join(" ");
        if !lacks.is_empty() {
            return Some(format!("the server's user lacks {lacks}: FLEET.md has the rights that sidelink needs"));
        }
        let is_of_scripts = refusals().all(|refusal| refusal.code != "ERR" || refusal.command == "EVAL");
        let reason = |refusal: &Refusal<'_>| match refusal.code {
            "READONLY" | "MASTERDOWN" => Some("the server is a replica, and may not be written to"),
            "LOADING" => Some("the server is loading its data"),
            "NOPERM" => Some("the server's user lacks the right to keys that begin with shared.prefix"),
            // The next connection is tried with each command by itself, which tells what is missing.
            "ERR" if is_of_scripts => Some("the server refuses a command within a script: is it a right?"),
            "MOVED" | "ASK" | "CROSSSLOT" | "CLUSTERDOWN" if !self.cluster => {
                Some("the server is a node of a Cluster: set shared.cluster = true")
            }
            "CLUSTERDOWN" => Some("the Cluster is down, or does not serve all slots"),
            _ => None,
        };
        if refusals().any(|refusal| refusal.code == "NOAUTH") {
            return Some(format!("the server wants a login: set {}", self.login));
        }
        refusals().find_map(reason).map(str::to_owned)
    }

    /// Why a login failed.
    pub(super) fn why_no_login(&self, error: &RedisError) -> String {
        match error.kind() {
            ErrorKind::AuthenticationFailed => format!("the server refuses the login: check {}", self.login),
            ErrorKind::Server(_) | ErrorKind::Extension => {
                let code = error.code().unwrap_or("ERR");
                let refusal = Refusal { command: "SELECT", code, is_about_keys: false };
                let reason = self.why_unusable(&[refusal]);
                reason.unwrap_or_else(|| format!("the server refuses the database of shared.url: {code}"))
            }
            _ => error.to_string(),
        }
    }
}
