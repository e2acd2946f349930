//! Scenarios: which faults a run knows. `mix`, with all of them, is what most seeds get.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use crate::nemesis::Fault;

macro_rules! scenarios {
    ($($(#[doc = $doc:literal])+ $variant:ident = $name:literal [$($fault:ident),*],)+) => {
        /// What may go wrong in a run.
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
        pub enum Scenario {
            $($(#[doc = $doc])+ $variant,)+
        }

        impl Scenario {
            /// All of them.
            pub const ALL: &'static [Scenario] = &[$(Scenario::$variant,)+];

            /// Its name on the command line.
            pub const fn name(self) -> &'static str {
                match self {
                    $(Scenario::$variant => $name,)+
                }
            }

            /// In one line.
            pub fn description(self) -> &'static str {
                match self {
                    $(Scenario::$variant => concat!($($doc),+).trim(),)+
                }
            }

            /// The faults that it draws from.
            pub const fn faults(self) -> &'static [Fault] {
                match self {
                    $(Scenario::$variant => &[$(Fault::$fault),*],)+
                }
            }
        }
    };
}

scenarios! {
    /// Everything that is tolerated, alone and together.
    Mix = "mix" [
        Crash, Crash, Crash, PowerLoss, PowerLossOfAll, Partition, OneWay, Hold, Reset, SlowNetwork, SlowDisk,
        StalledDisk, FullDisk, DamagedDisk, FlippedBit, Pause, PlannedEnd, LonelyLeader, HoldReports, LagThenKill, Unreadable,
        LateDeath, Reshape, Reshape
    ],
    /// Nothing goes wrong.
    Calm = "calm" [],
    /// Processes are killed and started again at once, later, or never.
    Crash = "crash" [Crash],
    /// Machines lose power, one by one and all at once.
    Power = "power" [PowerLoss, PowerLossOfAll, Crash, SlowDisk],
    /// The network falls apart, in both directions or in one.
    Partition = "partition" [Partition, OneWay],
    /// Messages are late or held back, connections break.
    Network = "network" [Hold, Reset, SlowNetwork],
    /// Disks are slow, stall, fill up, fail, and forget; one machine's only lose data.
    Disk = "disk" [SlowDisk, StalledDisk, FullDisk, DamagedDisk, FlippedBit, Crash],
    /// Processes stand still for longer than their lease, and go on as if nothing had happened.
    Pause = "pause" [Pause],
    /// Machines are killed while others that hold the same data lose power.
    CrashAndPower = "crash-and-power" [Crash, Crash, PowerLoss, PowerLossOfAll, Partition, SlowDisk],
    /// Tablet servers alone are killed, paused and cut off.
    Failover = "failover" [CrashTabletServer, PauseTabletServer, CutTabletServer],
    /// The storage's processes are killed, cut off and lose power, while its users come and go.
    Storage = "storage" [CrashStorage, CutStorage, PowerLossOfStorage, SlowDisk, CrashTabletServer],
    /// Masters alone are killed and cut off, while their tablet servers come and go.
    Masters = "masters" [CutMaster, PauseMaster, CrashMaster, CrashTabletServer],
    /// Clock rates differ by more than the masters were told: reads may be old, nothing acknowledged is lost.
    ClockBeyond = "clock-beyond" [
        CutTabletServer, CutTabletServer, PauseTabletServer, CrashTabletServer, CrashStorage, SlowDisk, Partition
    ],
    /// The leading master hears of nobody but one tablet server, and others elect another one.
    LonelyLeader = "lonely-leader" [LonelyLeader],
    /// What a tablet server tells the masters arrives when its tablets are elsewhere.
    LateReports = "late-reports" [HoldReports],
    /// A log's replicas are of different lengths when its writer is killed.
    Lag = "lag" [LagThenKill],
    /// Servers that should open tablets cannot read, and others open them.
    Unreadable = "unreadable" [Unreadable],
    /// Writers live on while their logs are sealed: their clocks are slow, and the masters' fast, beyond the bound.
    Fence = "fence" [LivingWriter],
    /// ... and chunk servers restart while what the writer asks of the controllers is slow to be answered.
    FenceRestarts = "fence-restarts" [LivingWriterRestarts],
    /// Files are written long before they are named, and unnamed files are looked for all the time.
    SlowCommits = "slow-commits" [SlowCommits, SlowCommits, SlowDisk, CrashTabletServer],
    /// Ends of tablet servers are reported when their successors serve.
    LateDeaths = "late-deaths" [LateDeath],
    /// Tablets are split, merged and moved all the time, while those who take part in it fail.
    Shape = "shape" [Reshape, Reshape, Reshape, Reshape, Reshape, Reshape, CrashTabletServer, CrashMaster, SlowDisk],
    /// Tablets are split and merged, and the servers that did it do not hear that it is done.
    LostAnswers = "lost-answers" [LostAnswer],
    /// All machines lose power while logs are recovered: sorted recovery files, which are not synced, are made again.
    LostRecoveryFiles = "lost-recovery-files" [PowerLossOfAll, Crash],
}

impl Scenario {
    /// Faults that take their time come one after the other, about this often; None: any time, several at once.
    pub fn gap(self) -> Option<Duration> {
        let ms = match self {
            Scenario::LonelyLeader => 13_000,
            Scenario::LateDeaths => 10_000,
            Scenario::Shape => 1_500,
            Scenario::LostAnswers => 4_000,
            Scenario::LateReports | Scenario::Unreadable => 6_000,
            Scenario::Fence | Scenario::FenceRestarts => 7_500,
            Scenario::Lag => 2_500,
            Scenario::SlowCommits => 700,
            _ => return None,
        };
        Some(Duration::from_millis(ms))
    }

    /// What a seed gets when nobody says otherwise.
    pub fn of_seed(seed: u64) -> Scenario {
        match seed % 3 {
            0 | 1 => Scenario::Mix,
            _ => Scenario::ALL[(seed / 3) as usize % Scenario::ALL.len()],
        }
    }
}

impl fmt::Display for Scenario {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Scenario {
    type Err = String;

    fn from_str(name: &str) -> Result<Scenario, String> {
        let known = Scenario::ALL.iter().copied().find(|scenario| scenario.name() == name);
        known.ok_or_else(|| format!("no scenario is named {name:?}; `uruk-sim scenarios` lists them"))
    }
}
