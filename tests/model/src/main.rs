//! Explores the model within bounds from the command line: exit code 0 when every state was visited and
//! all properties hold, 1 with the shortest way to the violation, 2 when asked for nonsense.

use std::process::ExitCode;

use uruk_seal_model::mutations::Mutation;
use uruk_seal_model::{Bounds, Checked, SealModel, explore};

const USAGE: &str = "uruk-seal-model [--replicas 3] [--quorum 2] [--records 1] [--segments 1] [--recoverers 2]
  [--rounds 2] [--deaths 1] [--crashes 1] [--losses 1] [--trims] [--readers] [--threads 1]
  [--without STEP] [--promises-only] [--steps]";

struct Asked {
    model: SealModel,
    threads: usize,
}

fn main() -> ExitCode {
    match parse(std::env::args().skip(1)) {
        Ok(Some(asked)) => run(&asked),
        Ok(None) => ExitCode::SUCCESS,
        Err(what) => {
            eprintln!("{what}\n{USAGE}");
            ExitCode::from(2)
        }
    }
}

fn parse(mut arguments: impl Iterator<Item = String>) -> Result<Option<Asked>, String> {
    let mut model = SealModel { bounds: Bounds::SMALL, mutations: &[], checked: Checked::All };
    let mut threads = 1;
    while let Some(flag) = arguments.next() {
        let mut value = || arguments.next().ok_or_else(|| format!("{flag} wants a value"));
        let mut number = || value()?.parse::<u8>().map_err(|error| format!("{flag}: {error}"));
        let bounds = &mut model.bounds;
        match flag.as_str() {
            "--replicas" => bounds.members = number()?,
            "--quorum" => bounds.quorum = number()?,
            "--records" => bounds.records = number()?,
            "--segments" => bounds.segments = number()?,
            "--recoverers" => bounds.recoverers = number()?,
            "--rounds" => bounds.rounds = number()?,
            "--deaths" => bounds.deaths = number()?,
            "--crashes" => bounds.crashes = number()?,
            "--losses" => bounds.losses = number()?,
            "--threads" => threads = number()? as usize,
            "--trims" => bounds.trims = true,
            "--readers" => bounds.readers = true,
            "--promises-only" => model.checked = Checked::Promises,
            "--without" => {
                let name = value()?;
                model.mutations = Mutation::named(&name).ok_or_else(|| format!("no step {name}"))?.alone();
            }
            "--steps" => {
                Mutation::ALL.iter().for_each(|m| println!("{:26} {:12} {:?}", m.name(), m.rule(), m.fate()));
                return Ok(None);
            }
            _ => return Err(format!("unknown argument {flag}")),
        }
    }
    model.bounds.validate()?;
    Ok(Some(Asked { model, threads }))
}

fn run(asked: &Asked) -> ExitCode {
    println!("{:?}", asked.model.bounds);
    let explored = explore(asked.model, asked.threads);
    println!("{} states, depth {}", explored.states, explored.depth);
    for (name, path) in &explored.violations {
        println!("\nviolated: {name}");
        for (i, (state, action)) in path.clone().into_vec().into_iter().enumerate() {
            match action {
                Some(action) => println!("{:4}  {action:?}", i + 1),
                None => println!("\n{state:#?}"),
            }
        }
    }
    for name in &explored.unreached {
        println!("never reached: {name}");
    }
    match explored.violations.is_empty() && explored.unreached.is_empty() {
        true => ExitCode::SUCCESS,
        false => ExitCode::FAILURE,
    }
}
