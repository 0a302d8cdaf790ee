//! Groups of bars with the lowest and the highest round, and lines.

use std::path::Path;

use anyhow::{Result, anyhow};
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

/// A median with the lowest and the highest of its rounds.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Spread {
    pub(crate) median: f64,
    pub(crate) low: f64,
    pub(crate) high: f64,
}

impl Spread {
    /// None of no values.
    pub(crate) fn of(mut values: Vec<f64>) -> Option<Self> {
        values.sort_by(f64::total_cmp);
        let median = *values.get(values.len() / 2)?;
        Some(Self { median, low: *values.first()?, high: *values.last()? })
    }
}

/// Bars side by side: one group per name, one bar per series. A value that is not there leaves its place empty.
#[derive(Debug)]
pub(crate) struct Bars {
    pub(crate) title: String,
    /// What the height of a bar says.
    pub(crate) axis: String,
    pub(crate) groups: Vec<String>,
    /// In the order of the groups.
    pub(crate) series: Vec<(String, Vec<Option<Spread>>)>,
}

/// Distinguishable by people who do not see some colours, and in grey.
const COLOURS: [RGBColor; 5] = [
    RGBColor(0, 114, 178),
    RGBColor(86, 180, 233),
    RGBColor(213, 94, 0),
    RGBColor(204, 121, 167),
    RGBColor(120, 120, 120),
];
const FONT: &str = "sans-serif";
const WIDTH: u32 = 960;
const HEIGHT: u32 = 420;

fn colour(index: usize) -> RGBColor {
    COLOURS.get(index % COLOURS.len()).copied().unwrap_or(BLACK)
}

/// As a position on an axis; counts here are small.
#[expect(clippy::cast_precision_loss, reason = "a handful of groups")]
fn place(count: usize) -> f64 {
    count as f64
}

impl Bars {
    pub(crate) fn draw(&self, to: &Path) -> Result<()> {
        self.onto(to).map_err(|error| anyhow!("draw {}: {error}", to.display()))
    }

    fn onto(&self, to: &Path) -> Result<(), Box<dyn std::error::Error>> {
        let root = SVGBackend::new(to, (WIDTH, HEIGHT)).into_drawing_area();
        root.fill(&WHITE)?;
        let known = || self.series.iter().flat_map(|(_, values)| values.iter().flatten());
        // One bad round must not press everything else flat: what is beyond the top is cut.
        let top = known().map(|spread| spread.median).fold(1.0, f64::max) * 1.35;
        let end = place(self.groups.len());
        let mut chart = ChartBuilder::on(&root)
            .caption(&self.title, (FONT, 18))
            .margin(12)
            .x_label_area_size(36)
            .y_label_area_size(56)
            .build_cartesian_2d(0.0..end, 0.0..top)?;
        chart
            .configure_mesh()
            .disable_x_mesh()
            .disable_x_axis()
            .light_line_style(TRANSPARENT)
            .y_desc(&self.axis)
            .label_style((FONT, 13))
            .draw()?;
        // What everything is beside.
        chart.draw_series(std::iter::once(PathElement::new([(0.0, 1.0), (end, 1.0)], BLACK.mix(0.5))))?;
        let step = 0.84 / place(self.series.len().max(1));
        for (index, (name, values)) in self.series.iter().enumerate() {
            let colour = colour(index);
            let bars = values.iter().enumerate().filter_map(|(group, value)| Some((group, (*value)?)));
            let left = |group: usize| place(group) + 0.08 + step * place(index);
            let boxes = bars.clone().map(|(group, spread)| {
                Rectangle::new([(left(group), 0.0), (left(group) + step * 0.9, spread.median)], colour.filled())
            });
            chart
                .draw_series(boxes)?
                .label(name)
                .legend(move |(x, y)| Rectangle::new([(x, y - 5), (x + 12, y + 5)], colour.filled()));
            let rounds = bars.map(|(group, spread)| {
                let middle = left(group) + step * 0.45;
                PathElement::new([(middle, spread.low), (middle, spread.high.min(top))], BLACK.stroke_width(1))
            });
            chart.draw_series(rounds)?;
        }
        let below = (FONT, 13).into_font().color(&BLACK).pos(Pos::new(HPos::Center, VPos::Top));
        for (group, name) in self.groups.iter().enumerate() {
            let at = chart.backend_coord(&(place(group) + 0.5, 0.0));
            root.draw(&Text::new(name.clone(), (at.0, at.1 + 8), below.clone()))?;
        }
        chart
            .configure_series_labels()
            .position(SeriesLabelPosition::UpperRight)
            .background_style(WHITE.mix(0.85))
            .label_font((FONT, 13))
            .draw()?;
        root.present()?;
        Ok(())
    }
}

/// What a cost does while something grows, on a logarithmic scale of it.
#[derive(Debug)]
pub(crate) struct Lines {
    pub(crate) title: String,
    pub(crate) grows: String,
    pub(crate) axis: String,
    pub(crate) series: Vec<(String, Vec<(f64, f64)>)>,
}

impl Lines {
    pub(crate) fn draw(&self, to: &Path) -> Result<()> {
        self.onto(to).map_err(|error| anyhow!("draw {}: {error}", to.display()))
    }

    fn onto(&self, to: &Path) -> Result<(), Box<dyn std::error::Error>> {
        let root = SVGBackend::new(to, (WIDTH, HEIGHT)).into_drawing_area();
        root.fill(&WHITE)?;
        let points = || self.series.iter().flat_map(|(_, points)| points);
        let first = points().map(|point| point.0).fold(f64::INFINITY, f64::min);
        let last = points().map(|point| point.0).fold(first, f64::max);
        let top = points().map(|point| point.1).fold(1.0, f64::max) * 1.15;
        let mut chart = ChartBuilder::on(&root)
            .caption(&self.title, (FONT, 18))
            .margin(12)
            .x_label_area_size(44)
            .y_label_area_size(56)
            .build_cartesian_2d((first..last.max(first * 10.0)).log_scale(), 0.0..top)?;
        chart
            .configure_mesh()
            .light_line_style(TRANSPARENT)
            .x_desc(&self.grows)
            .y_desc(&self.axis)
            .label_style((FONT, 13))
            .draw()?;
        for (index, (name, points)) in self.series.iter().enumerate() {
            let colour = colour(index);
            let style = colour.stroke_width(2);
            chart
                .draw_series(LineSeries::new(points.iter().copied(), style))?
                .label(name)
                .legend(move |(x, y)| PathElement::new([(x, y), (x + 12, y)], style));
            chart.draw_series(points.iter().map(|point| Circle::new(*point, 3, colour.filled())))?;
        }
        chart
            .configure_series_labels()
            .position(SeriesLabelPosition::UpperLeft)
            .background_style(WHITE.mix(0.85))
            .label_font((FONT, 13))
            .draw()?;
        root.present()?;
        Ok(())
    }
}
