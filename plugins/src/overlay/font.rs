//! Letters of five by seven dots, read from the picture in `font.txt`.

use std::sync::LazyLock;

/// Columns of a letter; one more lies between two.
pub(crate) const WIDTH: usize = 5;
/// Rows of a letter.
pub(crate) const HEIGHT: usize = 7;

const FIRST: usize = b' ' as usize;
const LETTERS: usize = 95;
/// Letters beside each other in the picture.
const ACROSS: usize = 16;

/// Rows of each letter from the space on, the leftmost dot in bit 4.
static FONT: LazyLock<[[u8; HEIGHT]; LETTERS]> = LazyLock::new(|| {
    let mut font = [[0; HEIGHT]; LETTERS];
    let lines: Vec<&str> = include_str!("font.txt").lines().filter(|l| !l.is_empty()).collect();
    for (i, letter) in font.iter_mut().enumerate() {
        for (y, row) in letter.iter_mut().enumerate() {
            let line = lines.get(i / ACROSS * HEIGHT + y).copied().unwrap_or_default();
            let dots = line.bytes().skip(i % ACROSS * (WIDTH + 1)).take(WIDTH);
            *row = dots.fold(0, |row, dot| row << 1 | u8::from(dot == b'#'));
        }
    }
    font
});

/// The rows of a letter; a question mark for one that is not drawn.
pub(crate) fn letter(c: char) -> &'static [u8; HEIGHT] {
    let at = (c as usize).checked_sub(FIRST).filter(|at| *at < LETTERS);
    &FONT[at.unwrap_or(usize::from(b'?') - FIRST)]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn letters_are_where_they_should_be() {
        assert_eq!(letter(' '), &[0; HEIGHT]);
        assert_eq!(letter('L'), &[16, 16, 16, 16, 16, 16, 31]);
        assert_eq!(letter('é'), letter('?'));
        assert_eq!(letter('~'), &[0, 0, 8, 21, 2, 0, 0]);
        let drawn: std::collections::BTreeSet<_> = (b'!'..=b'~').map(|c| letter(char::from(c))).collect();
        assert_eq!(drawn.len(), 94, "no two letters look the same");
    }
}
