//! What a connection has to be good for before batches use it, and what an error reply means to the operator.
//!
//! The text of an error may contain anything, also a password that the server did not understand: only its code is shown.

use redis::{ErrorKind, RedisError, Value};

use super::store::RedisCommand;
use crate::config::Shared;

/// Commands for a new connection: each that the tier uses, in a form that changes nothing.
pub(super) struct ConnectionCheck {
    pub(super) commands: Vec<RedisCommand>,
    cluster: bool,
}

impl ConnectionCheck {
    /// That of a server with items.
    pub(super) fn of_server(shared: &Shared) -> Self {
        // Two slots: a node of a Cluster refuses the two together.
        let [key, other] = ["0", "1"].map(|end| format!("{}{end}", shared.prefix));
        let of_key = |name| RedisCommand::new(name, &key);
        let commands = vec![
            of_key("EXPIRE").arg(1),
            of_key("MGET").arg(other),
            of_key("GET"),
            of_key("GETRANGE").arg(0).arg(0),
            of_key("STRLEN"),
            of_key("SET").arg("").arg("XX").arg("PX").arg(1),
            of_key("APPEND").arg(""),
            of_key("DEL"),
        ];
        Self { commands, cluster: shared.cluster }
    }

    /// # Errors
    /// Why batches cannot use the server, and what to change.
    pub(super) fn judge(&self, replies: &[Value]) -> Result<(), String> {
        let refused =
            || self.commands.iter().zip(replies).filter_map(|(command, reply)| Some((command, error(reply)?)));
        let lacks = refused().filter(|(_, error)| error.code == "NOPERM" && !error.is_about_keys);
        let lacks: Vec<String> = lacks.map(|(command, _)| format!("+{}", command.name.to_lowercase())).collect();
        if !lacks.is_empty() {
            return Err(format!(
                "the server's user lacks {}: FLEET.md has the rights that sidelink needs",
                lacks.join(" ")
            ));
        }
        let reason = refused().find_map(|(command, error)| Some((command, why_unusable(&error, self.cluster)?)));
        reason.map_or(Ok(()), |(command, reason)| Err(format!("{}: {reason}", command.name)))
    }
}

/// An error reply, without its text.
pub(super) struct ErrorReply<'v> {
    /// Its first word, as `OOM`.
    pub(super) code: &'v str,
    /// NOPERM: a key is concerned, not the command.
    is_about_keys: bool,
}

pub(super) fn error(reply: &Value) -> Option<ErrorReply<'_>> {
    let Value::ServerError(error) = reply else { return None };
    let is_about_keys = error.details().is_some_and(|text| !text.contains(" to run the "));
    Some(ErrorReply { code: error.code(), is_about_keys })
}

/// Why a server that replies so is of no use to batches; `None` if it may be, as one that is full.
pub(super) fn why_unusable(error: &ErrorReply<'_>, cluster: bool) -> Option<&'static str> {
    Some(match error.code {
        "READONLY" | "MASTERDOWN" => "the server is a replica, and may not be written to",
        "LOADING" => "the server is loading its data",
        "NOAUTH" => "the server wants a login: set shared.password_file, and shared.username for an ACL user",
        "NOPERM" if error.is_about_keys => {
            "the server's user lacks the right to the keys: its ACL needs ~ with shared.prefix and *"
        }
        "NOPERM" => "the server's user lacks the right to a command: FLEET.md has the rights that sidelink needs",
        "MOVED" | "ASK" | "CROSSSLOT" | "CLUSTERDOWN" if !cluster => {
            "the server is a node of a Cluster: set shared.cluster = true"
        }
        "CLUSTERDOWN" => "the Cluster is down, or does not serve all slots",
        "ERR" => "the server does not know the command, or refuses it: is it Redis or Valkey, and no Sentinel?",
        _ => return None,
    })
}

/// Why a login failed.
pub(super) fn why_no_login(error: &RedisError) -> String {
    match error.kind() {
        ErrorKind::AuthenticationFailed => {
            "the server refuses the login: check shared.username and shared.password_file".to_owned()
        }
        ErrorKind::Server(_) | ErrorKind::Extension => {
            let code = error.code().unwrap_or("ERR");
            let reason = why_unusable(&ErrorReply { code, is_about_keys: false }, true).filter(|_| code != "ERR");
            reason.map_or_else(|| format!("the server refuses the database of shared.url: {code}"), str::to_owned)
        }
        _ => error.to_string(),
    }
}
