//! Random commands against the state machine: every invariant after every one of them.

use proptest::prelude::*;

use super::*;

/// What a random command is made of: a kind, and numbers that choose among what there is.
type Dice = (u8, u16, u16, u16);

fn pick<T: Clone>(from: &[T], number: u16) -> Option<T> {
    (!from.is_empty()).then(|| from[usize::from(number) % from.len()].clone())
}

/// A command that is often right, sometimes stale, sometimes nonsense.
fn command((kind, a, b, c): Dice, state: &State, step: u64) -> Option<Command> {
    let micros = step as i64;
    let rows: Vec<&MetaRow> = state.meta.rows().collect();
    let row = pick(&rows, a);
    let any_server = ServerId(1 + u64::from(b % 6));
    // Mostly the owner under the present epoch; else somebody, somewhen.
    let (server, key) = match row {
        Some(row) if c % 4 > 0 => (row.owner().unwrap_or(any_server), row.key()),
        Some(row) => (any_server, TabletKey { epoch: Epoch(u64::from(c % 5)), ..row.key() }),
        None => (any_server, TabletKey { tablet: TabletId(1), epoch: Epoch(1) }),
    };
    let unfinished: Vec<ServerId> = state.unfinished_recoveries().iter().copied().collect();
    let live: Vec<ServerId> = state.servers.live().iter().copied().collect();
    let log = pick(&unfinished, a).unwrap_or(any_server);
    if kind % 32 >= 20 {
        return procedure_command((kind, a, b, c), state, step, (server, key));
    }
    Some(match kind % 32 {
        0 => Command::Register { registration: registration(u64::from(a % 12)), micros },
        1 => Command::ReportDeath { nonce: u64::from(a % 12), how: "killed".into(), micros },
        2 => Command::DeclareDead { server: pick(&live, a)?, how: "lapsed".into(), last_heard_micros: None, micros },
        3 | 4 => {
            let pieces = u64::from(log.0 as u16 % 3); // the same at every seal of one log
            let segments = (0..pieces).map(|n| n * 10..n * 10 + 10).collect();
            Command::RecordSeal { server: log, segments, end: pieces * 10, micros }
        }
        5 | 6 => Command::RecordSort {
            log,
            segment: u32::from(b % 3),
            sorter: pick(&live, c).filter(|_| c % 5 > 0).unwrap_or(any_server),
            path: if c % 7 == 0 { "".into() } else { format!("recovery/{}/{step}", any_server.0).into() },
            records: 1,
            bytes: 1,
            micros,
        },
        7 => Command::FinishRecovery { server: log, micros },
        8 | 9 => {
            let chosen = rows.iter().skip(usize::from(a) % 3).step_by(1 + usize::from(b % 3));
            let server = pick(&live, b).unwrap_or(any_server);
            let stale = u64::from(c % 6 == 0);
            let key = |row: &&MetaRow| TabletKey { epoch: Epoch(row.epoch.0 + stale), ..row.key() };
            Command::Assign { assignments: chosen.map(|row| Assignment { key: key(row), server }).collect(), micros }
        }
        10..=12 => {
            let mine = rows.iter().filter(|row| row.owner() == Some(server)).map(|row| row.key());
            Command::Opened { server, tablets: mine.chain([key]).collect(), micros }
        }
        13 => {
            let names =
                state.recoveries.all().flat_map(|recovery| recovery.seal.iter().flat_map(|seal| &seal.segments));
            let names: Vec<Arc<str>> = names.filter_map(|piece| Some(piece.sorted.as_ref()?.path.clone())).collect();
            let lost_recovery_files = pick(&names, b).into_iter().collect();
            Command::Fail { server, key, reason: "damaged".into(), lost_recovery_files, micros }
        }
        14..=16 => {
            let row = row?;
            let old: Vec<Arc<str>> = row.files().map(|file| file.path.clone()).collect();
            let number = step - u64::from(b % 3); // now and then a number that was used before
            Command::CommitFiles(Box::new(CommitFiles {
                schema_version: state.tables.get(row.table)?.schema.version - u64::from(c % 9 == 0),
                remove: pick(&old, b).filter(|_| c % 2 == 0).into_iter().collect(),
                memory_file: (b % 4 == 0).then(|| format!("tables/{}-{step}.mem", server.0).into()),
                logs_done: row.needed_logs.iter().copied().filter(|log| *log != server && c % 3 == 0).collect(),
                ..flush(server, key, number, &format!("tables/{}-{number}", server.0))
            }))
        }
        17 if c % 2 == 0 => Command::Close { tablets: vec![key] },
        17 => Command::Release { server, key },
        18 if c % 3 > 0 => {
            let name = ["t", "u", "v"][usize::from(a % 3)];
            let splits = (0..b % 5).map(|n| Bytes::from(format!("{n}"))).collect();
            Command::CreateTable { request: u64::from(c), schema: schema(name), splits, micros }
        }
        18 => Command::DeleteTable { request: u64::from(c % 8), name: ["t", "u", "v"][usize::from(a % 3)].into() },
        _ if c % 2 == 0 => {
            let (meta, _) = pick(&state.meta.sizes().collect::<Vec<_>>(), a)?;
            Command::SplitMeta { meta, rows_max: 2 }
        }
        _ => Command::ForgetFiles { entries: state.deletions.entries().keys().copied().take(2).collect() },
    })
}

/// The same, of splits, merges, moves, drains and alterations.
fn procedure_command(
    (kind, a, b, c): Dice,
    state: &State,
    step: u64,
    (server, key): (ServerId, TabletKey),
) -> Option<Command> {
    let micros = step as i64;
    let (reason, request) = ("test".to_owned(), u64::from(c % 50));
    let live: Vec<ServerId> = state.servers.live().iter().copied().collect();
    let running: Vec<&Procedure> = state.procedures.running().values().collect();
    let ended: Vec<&Procedure> = state.procedures.ended().map(|ended| &ended.procedure).collect();
    // Mostly one that runs; sometimes one that is over.
    let procedure = pick(&running, a).filter(|_| b % 8 > 0).or_else(|| pick(&ended, a));
    Some(match kind % 32 {
        20 => {
            let at = (b % 2 == 0).then(|| split_key(state, key.tablet, c)).flatten();
            Command::StartSplit { tablet: key, at, by_load: c % 2 == 0, reason, request, micros }
        }
        21..=23 => {
            let procedure = procedure?;
            let Work::Split { tablet, at, .. } = &procedure.work else { return None };
            let row = state.row(tablet.tablet)?;
            let mut split = TabletSplit {
                at: at.clone().or_else(|| split_key(state, tablet.tablet, c))?,
                ..split_of(row, procedure.id, micros)
            };
            clip_shares(row, &mut split, b);
            match c % 12 {
                0 => split.files.truncate(row.files().count() / 2),
                1 => split.flushed_seq = SeqNo(split.flushed_seq.0 + 1),
                2 => split.server = server,
                3 => split.key = key,
                _ => {}
            }
            Command::TabletSplit(Box::new(split))
        }
        24 => {
            let row = state.row(key.tablet)?;
            let right = match c % 10 {
                0 => pick(&state.meta.rows().collect::<Vec<_>>(), b)?,
                _ => state.meta.rows_of(row.table).find(|next| next.range.start == row.range.end)?,
            };
            Command::StartMerge { left: key, right: right.key(), reason, request, micros }
        }
        25 | 26 => {
            let procedure = procedure?;
            let Work::Merge { left, right } = procedure.work else { return None };
            let mut merged = merge_of(state, procedure.id, (left, right), step)?;
            match c % 12 {
                0 => merged.memory_file = None,
                1 => merged.server = server,
                2 => merged.left_flushed_seq = SeqNo(1),
                _ => {}
            }
            Command::TabletsMerged(Box::new(merged))
        }
        27 => Command::StartMove { tablet: key, target: pick(&live, b)?, reason, request, micros },
        28 if c % 3 > 0 => {
            let procedure = procedure?.id;
            Command::DeclineProcedure { server, procedure, reason, micros }
        }
        28 => Command::EndProcedure { procedure: procedure?.id, reason, micros },
        29 => Command::SetDraining { server: pick(&live, b)?, draining: c % 2 == 0 },
        30 => {
            let family = |name: &str| Family {
                name: name.into(),
                id: FamilyId(0),
                gc: GcRule::MaxVersions(u32::from(c) + 1),
                locality_group: u32::from(b % 9 == 0),
            };
            let change = match c % 3 {
                0 => FamilyChange::Create(family("g")),
                1 => FamilyChange::Update(family("f")),
                _ => FamilyChange::Drop("g".into()),
            };
            let name = ["t", "u", "v"][usize::from(a % 3)].into();
            Command::StartAlter { request, name, changes: vec![change], groups: vec![] }
        }
        _ => {
            let table = state.tables.all().nth(usize::from(a % 3))?;
            let version = table.schema.version - u64::from(c % 5 == 0);
            Command::ConfirmSchema { server, table: table.schema.id, version }
        }
    })
}

/// A key inside of the tablet, or nearly.
fn split_key(state: &State, tablet: TabletId, number: u16) -> Option<Bytes> {
    let range = &state.row(tablet)?.range;
    let mut key = range.start.to_vec();
    key.extend_from_slice(format!("{}", number % 10).as_bytes());
    Some(if number.is_multiple_of(13) { range.end.clone() } else { key.into() })
}

/// Nothing where a reference has nothing; and sometimes nothing where it might have something.
fn clip_shares(row: &MetaRow, split: &mut TabletSplit, dice: u16) {
    for (file, share) in row.files().zip(&mut split.files) {
        let (start, end) = (&file.range.start, &file.range.end);
        if *start >= split.at || dice.is_multiple_of(5) {
            (share.left_bytes, share.left_cells) = (0, 0);
        }
        if !end.is_empty() && *end <= split.at || dice % 5 == 1 {
            (share.right_bytes, share.right_cells) = (0, 0);
        }
    }
}

/// What must hold between the states before and after one command.
fn check_step(before: &State, command: &Command, reply: &Reply, after: &State) -> Result<(), String> {
    after.check()?;
    if matches!(reply, Reply::Refused(_)) && before != after {
        return Err("a refused command changed something".into());
    }
    for new in after.meta.rows() {
        let Some(old) = before.row(new.tablet) else { continue };
        check_row(before, command, old, new)
            .map_err(|broken| format!("{}: {broken}: {old:?} -> {new:?}", new.tablet))?;
    }
    check_references(before, command, after)?;
    check_reshaped(before, command, reply, after)?;
    for path in after.deletions.entries().values() {
        if !before.is_named(path) && before.deletions.entries().values().all(|queued| queued != path) {
            let is_sorted = matches!(command, Command::RecordSort { path: sorted, .. } if sorted == path);
            let is_new = matches!(command, Command::CommitFiles(_) | Command::TabletsMerged(_));
            if !is_sorted && !is_new {
                return Err(format!("{path} was let go, but not named before"));
            }
        }
    }
    Ok(())
}

/// No part of a file that was named before is named anew: what was clipped away stays away.
fn check_references(before: &State, command: &Command, after: &State) -> Result<(), String> {
    if matches!(command, Command::CommitFiles(_)) {
        return Ok(());
    }
    for (row, file) in after.meta.rows().flat_map(|row| row.files().map(move |file| (row, file))) {
        let covers = |old: &&FileRef| old.path == file.path && old.range.covers(&file.range);
        if !before.meta.rows().flat_map(MetaRow::files).any(|old| covers(&old)) {
            return Err(format!("{}: the reference {file:?} is wider than any before", row.tablet));
        }
    }
    Ok(())
}

/// Nothing is split or merged that is not in files, and the results are the owner's to open.
fn check_reshaped(before: &State, command: &Command, reply: &Reply, after: &State) -> Result<(), String> {
    let (made, old): (Vec<&MetaRow>, Vec<TabletId>) = match (command, reply) {
        (Command::TabletSplit(split), Reply::Split(rows)) => (rows.iter().collect(), vec![split.key.tablet]),
        (Command::TabletsMerged(merged), Reply::Row(row)) => (vec![row], vec![merged.left.tablet, merged.right.tablet]),
        _ => return Ok(()),
    };
    let old: Vec<&MetaRow> = old.iter().filter_map(|tablet| before.row(*tablet)).collect();
    if old.is_empty() {
        return if before == after { Ok(()) } else { Err("a repeat changed something".into()) };
    }
    for row in &old {
        let TabletState::Open(server) = row.state else { return Err(format!("{} was not open", row.tablet)) };
        if row.needed_logs != FewSet::from([server]) {
            return Err(format!("{} needed other logs than its owner's", row.tablet));
        }
        if made.iter().any(|new| new.state != TabletState::Opening(server) || new.epoch <= row.epoch) {
            return Err(format!("what became of {} is not opened by its owner under a higher epoch", row.tablet));
        }
        if made.iter().any(|new| new.flushed_seq < row.flushed_seq || new.needed_logs != row.needed_logs) {
            return Err(format!("what became of {} has other logs or less flushed", row.tablet));
        }
    }
    Ok(())
}

fn check_row(before: &State, command: &Command, old: &MetaRow, new: &MetaRow) -> Result<(), String> {
    let is_assignment = new.epoch != old.epoch;
    if is_assignment {
        let Command::Assign { .. } = command else { return Err("the epoch changed".into()) };
        let TabletState::Opening(server) = new.state else { return Err("assigned, but not opening".into()) };
        if new.epoch.0 != old.epoch.0 + 1 || old.owner().is_some() {
            return Err("an epoch was skipped, or an owner".into());
        }
        if !new.needed_logs.contains(&server) || !old.needed_logs.iter().all(|log| new.needed_logs.contains(log)) {
            return Err("the needed logs are not those before and the owner's".into());
        }
        for log in &old.needed_logs {
            let recovery = before.recoveries.get(*log).ok_or("needs a log without recovery")?;
            if !recovery.is_sorted() {
                return Err(format!("assigned before the log of {log} was sealed and sorted"));
            }
        }
    }
    if new.is_open() && !old.is_open() {
        let Command::Opened { server, tablets, .. } = command else { return Err("open without a report".into()) };
        if old.state != TabletState::Opening(*server) || !tablets.contains(&old.key()) {
            return Err("opened by another report than the row's (server, epoch)".into());
        }
    }
    // Its maker may serve it, though it has not said so: only its word, or its death, takes it away.
    if old.may_be_served() && old.owner() != new.owner() {
        let is_its_word = match command {
            Command::Release { server, .. } => old.owner() == Some(*server),
            Command::DeclareDead { .. } | Command::ReportDeath { .. } => true,
            _ => false,
        };
        if !is_its_word {
            return Err("taken away from a server that may serve it".into());
        }
    }
    if new.flushed_seq < old.flushed_seq {
        return Err("the flushed sequence number fell".into());
    }
    for gone in old.needed_logs.iter().filter(|log| !new.needed_logs.contains(log)) {
        let may = match command {
            Command::CommitFiles(commit) => commit.logs_done.contains(gone) && *gone != commit.server,
            Command::Release { server, .. } => server == gone,
            Command::Fail { server, .. } => {
                server == gone && old.state == TabletState::Opening(*server) && !old.is_made_there()
            }
            _ => false,
        };
        if !may {
            return Err(format!("the log of {gone} is not needed any more"));
        }
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]
    #[test]
    fn invariants_hold_whatever_is_commanded(dice in prop::collection::vec(any::<Dice>(), 1..260)) {
        let mut state = State::new();
        let mut answered: BTreeMap<(ServerId, TabletKey, u64), Reply> = BTreeMap::new();
        let (mut servers, mut tablets) = (BTreeSet::new(), BTreeSet::new());
        for (step, dice) in dice.into_iter().enumerate() {
            let Some(command) = command(dice, &state, step as u64 + 10) else { continue };
            let before = state.clone();
            let reply = state.apply(command.clone());
            if let Err(broken) = check_step(&before, &command, &reply, &state) {
                return Err(TestCaseError::fail(format!("{command:?} -> {reply:?}: {broken}")));
            }
            // Identities are never used again.
            for server in state.servers.live().difference(before.servers.live()) {
                prop_assert!(servers.insert(*server));
            }
            for row in state.meta.rows().filter(|row| before.row(row.tablet).is_none()) {
                prop_assert!(tablets.insert(row.tablet));
            }
            // A repeat at once is answered alike and changes nothing more.
            if let Command::CommitFiles(commit) = &command {
                let repeat = state.clone().apply(command.clone());
                prop_assert_eq!(&repeat, &reply);
                answered.insert((commit.server, commit.key, commit.number), reply);
            }
            prop_assert_eq!(&State::restore(&state.snapshot()).unwrap(), &state);
        }
    }
}
