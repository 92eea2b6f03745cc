//! Plots of curves on logarithmic axes.

use plotters::prelude::*;
use std::error::Error;

/// A curve: its name, its colour, its points.
pub type Curve<'a> = (&'a str, RGBColor, Vec<(f64, f64)>);

/// One chart: its title, what goes to the right, its curves.
pub struct Side<'a> {
    pub title: &'a str,
    pub x: &'a str,
    pub curves: Vec<Curve<'a>>,
}

/// A number without needless zeros.
fn label(v: &f64) -> String {
    if *v < 1.0 { v.to_string() } else { format!("{v:.0}") }
}

/// Draws charts side by side into an SVG file.
///
/// # Errors
/// A chart without points; the file cannot be written.
pub fn plot(file: &str, sides: &[Side<'_>]) -> Result<(), Box<dyn Error>> {
    let root = SVGBackend::new(file, (900, 340)).into_drawing_area();
    root.fill(&WHITE)?;
    for (area, side) in root.split_evenly((1, sides.len())).iter().zip(sides) {
        let range = |pick: fn(&(f64, f64)) -> f64| {
            let all = side.curves.iter().flat_map(|c| &c.2).map(pick);
            all.fold((f64::MAX, 0f64), |(low, high), v| (low.min(v), high.max(v)))
        };
        let ((first, last), (low, high)) = (range(|p| p.0), range(|p| p.1));
        if !(first > 0.0 && low > 0.0 && last < f64::MAX) {
            return Err(format!("{file}: {}: expected points above zero", side.title).into());
        }
        let mut chart = ChartBuilder::on(area)
            .margin(8)
            .caption(side.title, ("sans-serif", 15))
            .x_label_area_size(36)
            .y_label_area_size(52)
            .build_cartesian_2d((first..last * 1.2).log_scale(), (low / 2.0..high * 2.0).log_scale())?;
        chart
            .configure_mesh()
            .x_desc(side.x)
            .x_label_formatter(&label)
            .y_label_formatter(&label)
            .light_line_style(WHITE)
            .draw()?;
        for (name, colour, points) in &side.curves {
            chart
                .draw_series(LineSeries::new(points.clone(), colour.stroke_width(2)))?
                .label(*name)
                .legend(move |(x, y)| PathElement::new(vec![(x, y), (x + 16, y)], colour.stroke_width(2)));
        }
        chart
            .configure_series_labels()
            .position(SeriesLabelPosition::UpperLeft)
            .background_style(WHITE.mix(0.8))
            .border_style(BLACK.mix(0.3))
            .draw()?;
    }
    root.present()?;
    Ok(())
}
