//! What people read on the terminal.

use comfy_table::{ContentArrangement, Table, presets};

/// Prints a plain table, columns aligned, in the manner of `kubectl get`.
pub fn print_table(headers: &[&str], rows: impl IntoIterator<Item = Vec<String>>) {
    let mut table = Table::new();
    table
        .load_style(presets::NOTHING)
        .set_content_arrangement(ContentArrangement::Disabled)
        .set_header(headers.to_vec());
    for row in rows {
        table.add_row(row);
    }
    for line in table.to_string().lines() {
        println!("{}", line.trim());
    }
}

/// `12.3 MiB`.
pub fn human_bytes(bytes: u64) -> String {
    const UNITS: [&str; 6] = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"];
    let mut value = bytes as f64;
    let mut unit = 0;
    while value >= 1024.0 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    if unit == 0 { format!("{bytes} B") } else { format!("{value:.1} {}", UNITS[unit]) }
}

/// `12,345`.
pub fn human_count(count: u64) -> String {
    let digits = count.to_string();
    let mut out = String::with_capacity(digits.len() + digits.len() / 3);
    for (place, digit) in digits.chars().enumerate() {
        if place > 0 && (digits.len() - place).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

/// Bytes as people type them: text where printable, `\xNN` elsewhere.
pub fn show_bytes(bytes: &[u8]) -> String {
    match std::str::from_utf8(bytes) {
        Ok(text) if text.chars().all(|c| !c.is_control()) => text.replace('\\', "\\\\"),
        _ => bytes.escape_ascii().to_string(),
    }
}

/// The reverse of [`show_bytes`]: `\xNN`, `\\`, `\n`, `\r`, `\t`, `\0` are understood, all else is itself.
pub fn parse_bytes(text: &str) -> anyhow::Result<Vec<u8>> {
    let mut out = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('\\') {
        out.extend_from_slice(&rest.as_bytes()[..at]);
        let escape = &rest[at + 1..];
        let (byte, used) = match escape.as_bytes() {
            [b'x', digits @ ..] if digits.len() >= 2 => {
                let number = escape.get(1..3).and_then(|digits| u8::from_str_radix(digits, 16).ok());
                (number.ok_or_else(|| anyhow::anyhow!("bad escape in {text:?}: \\x needs two hex digits"))?, 3)
            }
            [b'n', ..] => (b'\n', 1),
            [b'r', ..] => (b'\r', 1),
            [b't', ..] => (b'\t', 1),
            [b'0', ..] => (0, 1),
            [b'\\', ..] => (b'\\', 1),
            [b'\'', ..] => (b'\'', 1),
            [b'"', ..] => (b'"', 1),
            _ => anyhow::bail!("bad escape in {text:?}: write \\\\ for a backslash, \\xNN for a byte"),
        };
        out.push(byte);
        rest = &escape[used..];
    }
    out.extend_from_slice(rest.as_bytes());
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_shown_so_that_they_parse_again() {
        for bytes in [&b"plain"[..], b"", b"a\\b", b"\x00\xff\n'\"", "ä".as_bytes(), b"\xc3"] {
            assert_eq!(parse_bytes(&show_bytes(bytes)).unwrap(), bytes, "{}", show_bytes(bytes));
        }
        for bad in ["\\", "\\x1", "\\q", "\\xä"] {
            assert!(parse_bytes(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn numbers_are_readable() {
        assert_eq!(human_count(0), "0");
        assert_eq!(human_count(1_234_567), "1,234,567");
        assert_eq!(human_bytes(1023), "1023 B");
        assert_eq!(human_bytes(1536), "1.5 KiB");
    }
}
