//! docs/benchmarks.svg: four figures from the same numbers as the page.

use anyhow::{Result, anyhow};
use plotters::{coord::Shift, prelude::*};

use super::{
    Results,
    delays::{Delays, MOVED},
    guest::{Place, Setup},
    instructions::Counted,
    operation::Operation,
};

const SIZE: (u32, u32) = (1_000, 760);
const FONT: &str = "sans-serif";
const COLOURS: [RGBColor; 4] =
    [RGBColor(27, 108, 168), RGBColor(222, 122, 34), RGBColor(58, 143, 84), RGBColor(140, 86, 160)];
/// Of the axis of delays, in milliseconds.
const SOONEST: f64 = 0.1;

/// Points under a label.
type Curve = (String, Vec<(f64, f64)>);
/// Of the bars: what they show, by the mechanism that the agent uses.
type Row = (&'static str, Place, Operation, fn(String) -> Setup);
type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;

/// What is drawn.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Figures {
    /// For each set-up, what each kernel's guest counted.
    instructions: Vec<(String, Vec<f64>)>,
    kernels: Vec<String>,
    /// For each load, milliseconds and the share of delays up to that.
    delays: Vec<Curve>,
    /// Tasks, and milliseconds of CPU time for a sweep: in pods, and outside.
    sweeps: Vec<Curve>,
    /// Pods, and MiB: of the process, and of the kernel's maps.
    memory: Vec<Curve>,
}

impl Figures {
    pub(super) fn new(results: &Results, delays: &[Delays]) -> Self {
        let moved = delays.iter().filter(|delays| delays.act == MOVED);
        let points = || results.sizes.iter();
        let sweep = |kind: fn(&super::Point) -> u32, outside: bool| {
            let of_kind = points().filter(|point| (point.outside > 0) == outside);
            let mut curve: Vec<_> = of_kind.map(|point| (f64::from(kind(point)), point.cpu)).collect();
            if outside {
                // nothing outside is where the curve of pods begins
                curve.splice(0..0, points().take(1).map(|point| (0.0, point.cpu)));
            }
            curve
        };
        let pods = || points().filter(|point| point.outside == 0 && point.inside as usize == point.pods);
        let memory =
            |of: fn(&super::Point) -> f64| pods().map(|point| (point.pods as f64, of(point))).collect();
        Self {
            instructions: instructions(&results.instructions),
            kernels: results.instructions.iter().map(|counted| short(&counted.kernel)).collect(),
            delays: moved
                .map(|delays| (delays.briefly().to_owned(), cumulated(&delays.milliseconds)))
                .collect(),
            sweeps: vec![
                ("in pods".to_owned(), sweep(|point| point.inside, false)),
                ("outside of pods".to_owned(), sweep(|point| point.outside, true)),
            ],
            memory: vec![
                ("process, resident".to_owned(), memory(|point| point.resident)),
                ("BPF maps".to_owned(), memory(|point| point.maps)),
            ],
        }
    }
}

/// The kernel's line.
fn short(kernel: &str) -> String {
    format!("Linux {}", kernel.split('.').take(2).collect::<Vec<_>>().join("."))
}

/// Instructions that each set-up adds to one check; those that every kernel has.
fn instructions(kernels: &[Counted]) -> Vec<(String, Vec<f64>)> {
    let rows: [Row; 5] = [
        ("an empty program on the agent's hook", Place::Host, Operation::OwnCheck, Setup::Empty),
        ("the agent: process outside of pods", Place::Host, Operation::OwnCheck, Setup::Agent),
        ("the agent: pod, check over its own namespace", Place::Pod, Operation::OwnCheck, Setup::Agent),
        ("the agent: pod, check over the host", Place::Pod, Operation::HostCheck, Setup::Agent),
        ("bpftrace printing both namespaces", Place::Host, Operation::OwnCheck, |_| Setup::Bpftrace),
    ];
    let row = |(label, place, operation, setup): Row| {
        let added = |kernel: &Counted| kernel.added(place, operation, &setup(kernel.mechanism()?));
        let values: Option<Vec<f64>> = kernels.iter().map(added).collect();
        Some((label.to_owned(), values.filter(|values| !values.is_empty())?))
    };
    rows.into_iter().filter_map(row).collect()
}

fn cumulated(values: &[f64]) -> Vec<(f64, f64)> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let count = sorted.len() as f64;
    sorted
        .iter()
        .zip(1..)
        .map(|(value, rank)| (value.max(SOONEST), f64::from(rank) / count * 100.0))
        .collect()
}

/// The SVG file's text.
///
/// # Errors
///
/// When the library refuses to draw.
pub(super) fn draw(figures: &Figures) -> Result<String> {
    let mut svg = String::new();
    paint(&mut svg, figures).map_err(|error| anyhow!("cannot draw the figures: {error}"))?;
    Ok(svg)
}

fn paint(svg: &mut String, figures: &Figures) -> Result<(), Box<dyn std::error::Error>> {
    let root = SVGBackend::with_string(svg, SIZE).into_drawing_area();
    root.fill(&WHITE)?;
    let areas = root.split_evenly((2, 2));
    if let [checks, delays, sweeps, memory] = areas.as_slice() {
        bars(checks, figures)?;
        let most = highest(&figures.delays, |point| point.0);
        let title = "From a process's move into a pod to the JSON line";
        let mut chart = ChartBuilder::on(delays)
            .caption(title, (FONT, 16))
            .margin(12)
            .margin_right(24)
            .x_label_area_size(38)
            .y_label_area_size(48)
            .build_cartesian_2d((SOONEST..most.max(1.0)).log_scale(), 0.0..100.0)?;
        let mut mesh = chart.configure_mesh();
        mesh.x_label_formatter(&plain).y_label_formatter(&plain).light_line_style(WHITE);
        mesh.x_desc("milliseconds").y_desc("findings, %").draw()?;
        for ((label, curve), colour) in figures.delays.iter().zip(COLOURS) {
            chart
                .draw_series(LineSeries::new(curve.iter().copied(), colour.stroke_width(2)))?
                .label(label)
                .legend(move |(x, y)| PathElement::new([(x, y), (x + 16, y)], colour.stroke_width(2)));
        }
        let place = SeriesLabelPosition::LowerRight;
        chart.configure_series_labels().position(place).background_style(WHITE).border_style(BLACK).draw()?;
        curves(
            sweeps,
            "CPU time of a sweep, with all else of a second",
            ("tasks", "milliseconds"),
            &figures.sweeps,
            SeriesLabelPosition::UpperLeft,
        )?;
        curves(
            memory,
            "Memory, one process in each pod",
            ("pods", "MiB"),
            &figures.memory,
            SeriesLabelPosition::MiddleRight,
        )?;
    }
    root.present()?;
    Ok(())
}

/// Groups of bars from the left, each under its label, a bar for each kernel.
fn bars(area: &Area<'_>, figures: &Figures) -> Result<(), Box<dyn std::error::Error>> {
    let rows = figures.instructions.len() as f64;
    let most = figures.instructions.iter().flat_map(|(_, values)| values).copied().fold(1.0, f64::max);
    let mut chart = ChartBuilder::on(area)
        .caption("Instructions added to one capability check", (FONT, 16))
        .margin(12)
        .margin_right(24)
        .x_label_area_size(38)
        .build_cartesian_2d(0.0..most * 1.15, 0.0..rows.max(1.0) + 0.5)?;
    let mut mesh = chart.configure_mesh();
    mesh.disable_y_mesh().disable_y_axis().x_label_formatter(&plain).light_line_style(WHITE);
    mesh.x_desc("instructions").draw()?;
    for (index, colour) in (0..figures.kernels.len()).zip(COLOURS) {
        let height = 0.6 / figures.kernels.len() as f64;
        let bar = |(row, (_, values)): (usize, &(String, Vec<f64>))| {
            let top = rows - row as f64 - 0.05 - height * index as f64;
            (values[index], top)
        };
        let places: Vec<(f64, f64)> = figures.instructions.iter().enumerate().map(bar).collect();
        let rectangle = |(value, top): &(f64, f64)| {
            Rectangle::new([(0.0, top - height * 0.9), (*value, *top)], colour.filled())
        };
        chart
            .draw_series(places.iter().map(rectangle))?
            .label(&figures.kernels[index])
            .legend(move |(x, y)| Rectangle::new([(x, y - 5), (x + 16, y + 5)], colour.filled()));
        let number = |(value, top): &(f64, f64)| {
            Text::new(format!("{value:.0}"), (value + most * 0.01, *top), (FONT, 11))
        };
        chart.draw_series(places.iter().map(number))?;
    }
    let label = |(row, (label, _)): (usize, &(String, Vec<f64>))| {
        Text::new(label.clone(), (most * 0.005, rows - row as f64 + 0.25), (FONT, 12))
    };
    chart.draw_series(figures.instructions.iter().enumerate().map(label))?;
    let place = SeriesLabelPosition::UpperRight;
    chart.configure_series_labels().position(place).background_style(WHITE).border_style(BLACK).draw()?;
    Ok(())
}

/// Lines with a point at each measurement, from zero.
fn curves(
    area: &Area<'_>,
    title: &str,
    (x, y): (&str, &str),
    lines: &[Curve],
    place: SeriesLabelPosition,
) -> Result<(), Box<dyn std::error::Error>> {
    let (right, top) = (highest(lines, |point| point.0), highest(lines, |point| point.1));
    let mut chart = ChartBuilder::on(area)
        .caption(title, (FONT, 16))
        .margin(12)
        .margin_right(24)
        .x_label_area_size(38)
        .y_label_area_size(48)
        .build_cartesian_2d(0.0..right * 1.05, 0.0..top * 1.15)?;
    let mut mesh = chart.configure_mesh();
    mesh.x_labels(6).x_label_formatter(&plain).y_label_formatter(&plain).light_line_style(WHITE);
    mesh.x_desc(x).y_desc(y).draw()?;
    for ((label, points), colour) in lines.iter().zip(COLOURS) {
        chart
            .draw_series(LineSeries::new(points.iter().copied(), colour.stroke_width(2)))?
            .label(label)
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 16, y)], colour.stroke_width(2)));
        chart.draw_series(points.iter().map(|point| Circle::new(*point, 3, colour.filled())))?;
    }
    chart.configure_series_labels().position(place).background_style(WHITE).border_style(BLACK).draw()?;
    Ok(())
}

/// A number at an axis, with decimals where it has any.
fn plain(value: &f64) -> String {
    format!("{value:.1}").trim_end_matches(".0").to_owned()
}

/// The highest of a coordinate, and more than nothing.
fn highest(lines: &[Curve], of: fn(&(f64, f64)) -> f64) -> f64 {
    lines.iter().flat_map(|(_, points)| points).map(of).fold(f64::MIN_POSITIVE, f64::max)
}

#[cfg(test)]
mod tests {
    use super::super::Point;
    use super::*;

    fn results() -> Results {
        let size = |pods, inside, outside, cpu| Point {
            pods,
            inside,
            outside,
            cpu,
            resident: 30.0,
            ..Point::default()
        };
        let sizes =
            vec![size(0, 0, 0, 0.1), size(10, 10, 0, 0.2), size(10, 5_000, 0, 9.0), size(0, 0, 20_000, 20.0)];
        Results { sizes, ..Results::default() }
    }

    #[test]
    fn curves_hold_the_points_they_are_about() {
        let figures = Figures::new(&results(), &[]);
        assert_eq!(figures.sweeps[0].1, [(0.0, 0.1), (10.0, 0.2), (5_000.0, 9.0)]);
        assert_eq!(figures.sweeps[1].1, [(0.0, 0.1), (20_000.0, 20.0)]);
        assert_eq!(figures.memory[0].1, [(0.0, 30.0), (10.0, 30.0)]);
        assert_eq!(cumulated(&[3.0, 0.01]), [(SOONEST, 50.0), (3.0, 100.0)]);
        assert_eq!(short("7.3.4+deb13-cloud-amd64"), "Linux 7.3");
    }

    #[test]
    fn figures_are_drawn_with_their_labels() {
        let mut figures = Figures::new(&results(), &[]);
        figures.kernels = vec!["Linux 6.1".to_owned()];
        figures.instructions = vec![("an agent".to_owned(), vec![123.0])];
        figures.delays = vec![("nothing".to_owned(), cumulated(&[1.0, 5.0]))];
        let svg = draw(&figures).unwrap();
        assert!(svg.starts_with("<svg") && svg.trim_end().ends_with("</svg>"));
        for label in ["an agent", "123", "Linux 6.1", "milliseconds", "MiB", "outside of pods", "findings, %"]
        {
            assert!(svg.contains(label), "{label}");
        }
        assert!(draw(&Figures::default()).is_ok());
    }
}
