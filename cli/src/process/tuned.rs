//! `--tune NAME=VALUE`: one value of a configuration by its name, for tests and drills.

use anyhow::{Context, Result};
use serde::Serialize;
use serde::de::DeserializeOwned;

/// The configuration with one value set; `a.b` names the value `b` within `a`.
pub fn tuned<T: Serialize + DeserializeOwned>(config: &T, setting: &str) -> Result<T> {
    set(config, setting).with_context(|| format!("--tune {setting}"))
}

fn set<T: Serialize + DeserializeOwned>(config: &T, setting: &str) -> Result<T> {
    let (name, value) = setting.split_once('=').context("write NAME=VALUE")?;
    let mut all = serde_json::to_value(config).context("the configuration is no plain data")?;
    let known = all
        .pointer_mut(&format!("/{}", name.replace('.', "/")))
        .filter(|known| known.is_number() || known.is_boolean())
        .with_context(|| format!("there is no value {name:?} to tune"))?;
    *known = serde_json::from_str(value).with_context(|| format!("{value:?} is neither a number nor true or false"))?;
    serde_json::from_value(all).context("the value does not fit")
}

#[cfg(test)]
mod tests {
    use uruk_master::Tuning;
    use uruk_tabletserver::server::TabletServerConfig;

    use super::*;

    #[test]
    fn values_are_set_by_name_or_refused() {
        let tuning = tuned(&Tuning::default(), "merge_age_ms=77").unwrap();
        assert_eq!(tuning, Tuning { merge_age_ms: 77, ..Tuning::default() });
        assert!(!tuned(&tuning, "auto_balance=false").unwrap().auto_balance);
        for bad in ["merge_age_ms", "nothing=1", "=1", "merge_age_ms=x", "merge_age_ms=-1", "auto_balance=1"] {
            assert!(tuned(&tuning, bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_part_of_a_configuration_is_named_with_a_dot() {
        let config = tuned(&TabletServerConfig::default(), "engine.compaction_files_stuck=9").unwrap();
        assert_eq!(config.engine.compaction_files_stuck, 9);
        assert!(tuned(&config, "engine=1").is_err(), "not a value");
    }
}
