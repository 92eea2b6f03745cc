//! The four orders in which VMamba reads an image's pixels (Liu et al. 2024, SS2D: scan expanding and scan merging).
//!
//! Pixel `p = row · width + column`. Cross: order 0 row by row, order 1 column by column, orders 2 and 3 the same
//! backwards. A scan in such an order is a [`selective_scan`](crate::selective_scan()) over the image as it lies;
//! nothing is copied.

use crate::selective_scan::Order;

/// Which four orders.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Rows, columns, rows backwards, columns backwards.
    Cross2d,
    /// Rows, four times.
    Unidi,
    /// Rows twice, rows backwards twice.
    Bidi,
}

impl Mode {
    /// Whether order `k` begins at the first pixel: its end joins the next image's beginning.
    pub fn is_forward(self, k: usize) -> bool {
        self == Mode::Unidi || k < 2
    }
}

/// The orders for images of one size.
pub struct CrossScan {
    mode: Mode,
    columns: Vec<u32>,
    columns_back: Vec<u32>,
}

impl CrossScan {
    /// The orders of an image of `height` lines of `width` pixels.
    ///
    /// # Panics
    /// The image has more than 2³² pixels.
    pub fn new(mode: Mode, height: usize, width: usize) -> Self {
        let len = if mode == Mode::Cross2d { height * width } else { 0 };
        assert!(u32::try_from(len).is_ok(), "cross_scan: {height}x{width} pixels");
        let columns: Vec<u32> = (0..len).map(|t| (t % height * width + t / height) as u32).collect();
        let columns_back = columns.iter().rev().copied().collect();
        Self { mode, columns, columns_back }
    }

    /// Which four orders.
    pub fn mode(&self) -> Mode {
        self.mode
    }

    /// Order `k` of 0, 1, 2, 3.
    pub fn order(&self, k: usize) -> Order<'_> {
        match (self.mode, k) {
            (Mode::Cross2d, 1) => Order::Rows(&self.columns),
            (Mode::Cross2d, 3) => Order::Rows(&self.columns_back),
            (mode, k) if mode.is_forward(k) => Order::Forward,
            _ => Order::Reverse,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rows(mode: Mode, k: usize, h: usize, w: usize) -> Vec<usize> {
        let scan = CrossScan::new(mode, h, w);
        (0..h * w).map(|t| scan.order(k).row(t, h * w)).collect()
    }

    #[test]
    fn orders_of_a_small_image() {
        assert_eq!(rows(Mode::Cross2d, 0, 2, 3), [0, 1, 2, 3, 4, 5]);
        assert_eq!(rows(Mode::Cross2d, 1, 2, 3), [0, 3, 1, 4, 2, 5]);
        assert_eq!(rows(Mode::Cross2d, 2, 2, 3), [5, 4, 3, 2, 1, 0]);
        assert_eq!(rows(Mode::Cross2d, 3, 2, 3), [5, 2, 4, 1, 3, 0]);
        for k in 0..4 {
            assert_eq!(rows(Mode::Unidi, k, 1, 3), [0, 1, 2]);
            assert_eq!(rows(Mode::Bidi, k, 3, 1), if k < 2 { [0, 1, 2] } else { [2, 1, 0] });
            assert!(rows(Mode::Cross2d, k, 0, 4).is_empty());
        }
    }
}
