//! Who reaches whom, as a full matrix.

use std::{collections::BTreeSet, fmt, net::Ipv4Addr, path::PathBuf, thread, time::Duration};

use crate::{datapath::patience, error::BedError, probe, threads::joined};

/// How long an echo reply is waited for where none is expected. Requests are repeated meanwhile.
const WINDOW: Duration = Duration::from_millis(600);
/// How long a change may take until it shows on every node.
const SETTLE: Duration = Duration::from_secs(10);

/// Somewhere that packets go from and to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// What a table calls it.
    pub name: String,
    /// The network namespace it is in.
    pub netns: PathBuf,
    /// The address that others know it by.
    pub address: Ipv4Addr,
}

/// A measured matrix: the row reaches the column.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Matrix {
    places: Vec<Place>,
    open: BTreeSet<(usize, usize)>,
}

impl Matrix {
    /// Sends echo requests from every place to every other one, all at once.
    pub fn measure(places: &[Place]) -> Result<Self, BedError> {
        let addresses: Vec<Ipv4Addr> = places.iter().map(|place| place.address).collect();
        let window = patience(WINDOW);
        let rows: Vec<Result<Vec<bool>, BedError>> = thread::scope(|scope| {
            let probes: Vec<_> = places
                .iter()
                .map(|place| {
                    let addresses = &addresses;
                    scope.spawn(move || probe::reach(&place.netns, addresses, window))
                })
                .collect();
            probes.into_iter().map(joined).collect()
        });
        let mut open = BTreeSet::new();
        for (from, row) in rows.into_iter().enumerate() {
            open.extend(row?.into_iter().enumerate().filter(|(_, ok)| *ok).map(|(to, _)| (from, to)));
        }
        Ok(Self { places: places.to_vec(), open })
    }

    /// What a rule says the matrix should be; a place always reaches itself.
    pub fn expected(places: &[Place], rule: impl Fn(&str, &str) -> bool) -> Self {
        let mut open = BTreeSet::new();
        for (i, from) in places.iter().enumerate() {
            for (j, to) in places.iter().enumerate() {
                if i == j || rule(&from.name, &to.name) {
                    open.insert((i, j));
                }
            }
        }
        Self { places: places.to_vec(), open }
    }

    /// Measures until the matrix is what the rule says, and once more to see that it stays so. Fails with a
    /// table in which every wrong cell is marked.
    pub fn require(places: &[Place], rule: impl Fn(&str, &str) -> bool) -> Result<Self, BedError> {
        let expected = Self::expected(places, rule);
        let end = std::time::Instant::now() + patience(SETTLE);
        loop {
            let seen = Self::measure(places)?;
            if seen == expected {
                let again = Self::measure(places)?;
                if again == expected {
                    return Ok(again);
                }
                return Err(BedError::answer("the matrix changed by itself", again.against(&expected)));
            }
            if std::time::Instant::now() > end {
                return Err(BedError::answer("the matrix (! marks what is wrong)", seen.against(&expected)));
            }
        }
    }

    /// Whether the place at `from` reaches the one at `to`.
    pub fn open(&self, from: usize, to: usize) -> bool {
        self.open.contains(&(from, to))
    }

    /// The table, with a `!` on every cell that differs from `expected`.
    pub fn against(&self, expected: &Self) -> String {
        self.table(|cell| expected.open.contains(&cell))
    }

    fn table(&self, expected: impl Fn((usize, usize)) -> bool) -> String {
        let width = self.places.iter().map(|place| place.name.len()).max().unwrap_or(0).max(4);
        let mut text = format!("{:width$}", "");
        for place in &self.places {
            text.push_str(&format!(" {:>width$}", place.name));
        }
        text.push('\n');
        for (i, place) in self.places.iter().enumerate() {
            text.push_str(&format!("{:width$}", place.name));
            for j in 0..self.places.len() {
                let open = self.open(i, j);
                let mark = if i == j {
                    "·"
                } else if open {
                    "yes"
                } else {
                    "-"
                };
                let wrong = if open == expected((i, j)) { "" } else { "!" };
                text.push_str(&format!(" {:>width$}", format!("{wrong}{mark}")));
            }
            text.push('\n');
        }
        text
    }
}

impl fmt::Display for Matrix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.table(|cell| self.open.contains(&cell)))
    }
}
