//! What a file on disk holds, for people: the form in which every crate describes its own files.

/// Something that is not as it should be.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Damage {
    /// Where the damaged piece starts.
    pub offset: u64,
    /// What it is and what is wrong with it.
    pub what: String,
}

/// What a file holds.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct FileReport {
    /// What kind of file it is.
    pub kind: &'static str,
    /// Its parts and properties, in order: name, content.
    pub facts: Vec<(&'static str, String)>,
    /// All that is wrong, as it was found.
    pub damage: Vec<Damage>,
}

impl FileReport {
    /// Of a file of which nothing is known yet.
    pub fn new(kind: &'static str) -> FileReport {
        FileReport { kind, ..FileReport::default() }
    }

    /// Adds a fact.
    pub fn fact(&mut self, name: &'static str, content: impl ToString) {
        self.facts.push((name, content.to_string()));
    }

    /// Adds damage.
    pub fn damaged(&mut self, offset: u64, what: impl ToString) {
        self.damage.push(Damage { offset, what: what.to_string() });
    }
}
