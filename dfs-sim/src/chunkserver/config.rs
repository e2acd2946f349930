//! A chunk server's settings.

use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::error::StartError;

/// Settings of one chunk server.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ChunkServerConfig {
    /// The folder that holds everything; one folder, one server.
    pub folder: PathBuf,
    /// `host:port` to listen on; port 0 picks a free one.
    pub listen: String,
    /// `host:port` under which others reach it; empty = the address that it listens on.
    pub advertise: String,
    /// Addresses of all controllers.
    pub controllers: Vec<String>,
    /// Failure domain: replicas are spread over zones.
    pub zone: String,
    /// The background check reads this many bytes per second; 0 turns it off.
    pub scrub_bytes_per_s: u64,
    /// It rests this long between two passes, in milliseconds.
    pub scrub_pause_ms: u64,
    /// Appends and chunks are refused when they would leave less than this free, so that fences and
    /// metadata can always be written.
    pub disk_reserve_bytes: u64,
    /// Files kept mapped for reading.
    pub maps_max: usize,
    /// Chunks being written at the same time; more are refused as overload.
    pub chunk_writes_max: usize,
    /// Copies made for the controller at the same time; more orders wait for its next answer.
    pub copies_max: usize,
    /// A call to a controller or another chunk server takes at most this long, in milliseconds.
    pub rpc_timeout_ms: u64,
    /// A client that is sending data is given up after this long without a message, in milliseconds.
    pub idle_timeout_ms: u64,
}

impl Default for ChunkServerConfig {
    fn default() -> ChunkServerConfig {
        ChunkServerConfig {
            folder: PathBuf::new(),
            listen: "127.0.0.1:0".into(),
            advertise: String::new(),
            controllers: Vec::new(),
            zone: String::new(),
            scrub_bytes_per_s: 8 << 20,
            scrub_pause_ms: 3_600_000,
            disk_reserve_bytes: 256 << 20,
            maps_max: 512,
            chunk_writes_max: 64,
            copies_max: 2,
            rpc_timeout_ms: 2_000,
            idle_timeout_ms: 30_000,
        }
    }
}

impl ChunkServerConfig {
    /// Checks every setting; the error names the first wrong one.
    pub fn validate(&self) -> Result<(), StartError> {
        let wrong = |what: String| Err(StartError::Config(what));
        if self.folder.as_os_str().is_empty() {
            return wrong("folder is missing".into());
        }
        for (name, address) in [("listen", &self.listen), ("advertise", &self.advertise)] {
            let optional = name == "advertise" && address.is_empty();
            if !optional && !is_address(address) {
                return wrong(format!("{name} = \"{address}\" is not host:port"));
            }
        }
        if self.controllers.is_empty() {
            return wrong("controllers is empty; name at least one".into());
        }
        if let Some(bad) = self.controllers.iter().find(|address| !is_address(address)) {
            return wrong(format!("controllers: \"{bad}\" is not host:port"));
        }
        for (name, value) in [
            ("maps_max", self.maps_max),
            ("chunk_writes_max", self.chunk_writes_max),
            ("copies_max", self.copies_max),
            ("rpc_timeout_ms", self.rpc_timeout_ms as usize),
            ("idle_timeout_ms", self.idle_timeout_ms as usize),
        ] {
            if value == 0 {
                return wrong(format!("{name} must be at least 1"));
            }
        }
        Ok(())
    }

    pub(super) fn rpc_timeout(&self) -> Duration {
        Duration::from_millis(self.rpc_timeout_ms)
    }

    pub(super) fn idle_timeout(&self) -> Duration {
        Duration::from_millis(self.idle_timeout_ms)
    }
}

fn is_address(text: &str) -> bool {
    text.rsplit_once(':').is_some_and(|(host, port)| !host.is_empty() && port.parse::<u16>().is_ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn good() -> ChunkServerConfig {
        ChunkServerConfig { folder: "/data".into(), controllers: vec!["a:1".into()], ..ChunkServerConfig::default() }
    }

    #[test]
    fn validate_names_the_wrong_setting() {
        good().validate().expect("good");
        type Change = fn(&mut ChunkServerConfig);
        let wrong: [(&str, Change); 7] = [
            ("folder", |c| c.folder = PathBuf::new()),
            ("listen", |c| c.listen = "nowhere".into()),
            ("advertise", |c| c.advertise = "host:99999".into()),
            ("controllers", |c| c.controllers.clear()),
            ("controllers", |c| c.controllers.push(":1".into())),
            ("copies_max", |c| c.copies_max = 0),
            ("maps_max", |c| c.maps_max = 0),
        ];
        for (name, change) in wrong {
            let mut config = good();
            change(&mut config);
            let error = config.validate().expect_err(name);
            assert!(error.to_string().contains(name), "{error}");
        }
    }
}
