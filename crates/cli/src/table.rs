//! Results that are a table for people and one JSON object for programs.

use std::io::{self, IsTerminal, Write};

use clap::ValueEnum;
use serde::Serialize;

/// How to print a table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum TableFormat {
    /// Aligned columns.
    Table,
    /// One JSON object.
    Json,
}

impl TableFormat {
    /// What was asked for, else a table on a terminal and JSON in a pipe.
    pub fn or_default(asked: Option<Self>) -> Self {
        asked.unwrap_or(if io::stdout().is_terminal() { Self::Table } else { Self::Json })
    }

    /// Prints `view`, or what `table` makes of it.
    pub fn print<T: Serialize>(self, view: &T, table: impl Fn(&T) -> String) -> io::Result<()> {
        let mut stdout = io::stdout().lock();
        match self {
            Self::Table => write!(stdout, "{}", table(view)),
            Self::Json => {
                serde_json::to_writer_pretty(&mut stdout, view)?;
                writeln!(stdout)
            }
        }
    }
}

/// Pads every column to its widest cell; the first column to the left, the others to the right.
pub fn columns<const N: usize>(header: [&str; N], rows: &[[String; N]]) -> String {
    let widths: [usize; N] = std::array::from_fn(|column| {
        let cells = rows.iter().map(|row| row[column].chars().count());
        cells.chain([header[column].chars().count()]).max().unwrap_or(0)
    });
    let line = |cells: [&str; N]| {
        let padded = cells.iter().zip(widths).enumerate().map(|(column, (cell, width))| match column {
            0 => format!("{cell:<width$}"),
            _ => format!("{cell:>width$}"),
        });
        padded.collect::<Vec<_>>().join("  ") + "\n"
    };
    let body = rows.iter().map(|row| line(std::array::from_fn(|column| row[column].as_str())));
    std::iter::once(line(header)).chain(body).collect()
}

/// `line` in bold green, or dimmed, on a terminal that has not asked for no colours.
pub fn emphasised(line: &str, strongly: bool) -> String {
    let plain = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
    if plain || !io::stdout().is_terminal() {
        return line.to_owned();
    }
    let code = if strongly { "1;32" } else { "2" };
    format!("\x1b[{code}m{line}\x1b[0m")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        let rows = [["gqa".to_owned(), "1.28".to_owned()], ["mqa-absorb".to_owned(), "12.05".to_owned()]];
        let expected = "path           ns\ngqa          1.28\nmqa-absorb  12.05\n";
        assert_eq!(columns(["path", "ns"], &rows), expected);
    }
}
