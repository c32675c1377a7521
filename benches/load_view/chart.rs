//! Small multiples as SVG: a ratio over the view's age, one line per number of shards.

use std::fmt::Write;

pub struct Line {
    pub name: String,
    pub values: Vec<f64>,
}

pub struct Panel {
    pub name: String,
    pub lines: Vec<Line>,
}

const WIDTH: f64 = 300.0;
const HEIGHT: f64 = 170.0;
const LEFT: f64 = 48.0;
const TOP: f64 = 58.0;
const GAP: f64 = 66.0;
const COLOURS: [&str; 4] = ["#9db8dd", "#5f8fcf", "#1f5fbf", "#0b2f66"];
const COLUMNS: usize = 3;

pub fn draw(ages_us: &[u64], panels: &[Panel]) -> String {
    let rows = panels.len().div_ceil(COLUMNS);
    let width = COLUMNS as f64 * (WIDTH + GAP) + LEFT;
    let height = TOP + rows as f64 * (HEIGHT + GAP);
    let mut out = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width}\" height=\"{height}\" \
         viewBox=\"0 0 {width} {height}\" font-family=\"sans-serif\" font-size=\"12\">\n\
         <rect width=\"{width}\" height=\"{height}\" fill=\"white\"/>\n\
         <text x=\"{LEFT}\" y=\"22\" font-size=\"15\">p99 of wait and work, over that of a scheduler that knows everything, \
         by the age of the shards' view</text>\n"
    );
    for (index, panel) in panels.iter().enumerate() {
        let left = LEFT + (index % COLUMNS) as f64 * (WIDTH + GAP);
        let top = TOP + (index / COLUMNS) as f64 * (HEIGHT + GAP);
        one(&mut out, ages_us, panel, left, top);
    }
    out + "</svg>\n"
}

fn one(out: &mut String, ages_us: &[u64], panel: &Panel, left: f64, top: f64) {
    let most = panel
        .lines
        .iter()
        .flat_map(|line| &line.values)
        .fold(1.0f64, |a, b| a.max(*b));
    // From a ratio of 0.9, so that 1 is not on the frame; logarithmic, since doubling is what is asked about.
    let (low, high) = (0.9f64.ln(), (most * 1.1).ln());
    let x = |at: usize| left + WIDTH * at as f64 / (ages_us.len() - 1) as f64;
    let y = |value: f64| top + HEIGHT - HEIGHT * (value.max(0.9).ln() - low) / (high - low);
    let _ = writeln!(
        out,
        "<text x=\"{left}\" y=\"{}\">{}</text>",
        top - 8.0,
        panel.name
    );
    for grid in [1.0, 1.03, 1.25, 1.5, 2.0, 3.0, 5.0, 10.0, 20.0, 50.0] {
        // Lines that would lie on each other say nothing.
        let crowded = grid == 1.03 && (y(1.0) - y(1.03)) < 9.0;
        if grid > most * 1.1 || crowded {
            continue;
        }
        let _ = writeln!(
            out,
            "<path d=\"M{left} {0:.1}h{WIDTH}\" stroke=\"#ddd\"/><text x=\"{1}\" y=\"{2:.1}\" \
             text-anchor=\"end\">{grid}</text>",
            y(grid),
            left - 6.0,
            y(grid) + 4.0
        );
    }
    for (at, us) in ages_us.iter().enumerate() {
        let text = match us {
            0 => "0".into(),
            us if *us < 1_000 => format!("{}", *us as f64 / 1e3),
            us => format!("{}", us / 1_000),
        };
        let _ = writeln!(
            out,
            "<text x=\"{:.1}\" y=\"{}\" text-anchor=\"middle\" fill=\"#777\">{text}</text>",
            x(at),
            top + HEIGHT + 16.0
        );
    }
    let _ = writeln!(
        out,
        "<text x=\"{}\" y=\"{}\" text-anchor=\"end\" fill=\"#777\">ms</text>",
        left + WIDTH,
        top + HEIGHT + 32.0
    );
    for (index, line) in panel.lines.iter().enumerate() {
        let points: Vec<String> = line
            .values
            .iter()
            .enumerate()
            .map(|(at, v)| format!("{:.1},{:.1}", x(at), y(*v)))
            .collect();
        let colour = COLOURS[index % COLOURS.len()];
        let _ = writeln!(
            out,
            "<polyline points=\"{}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"1.6\"/>\
             <text x=\"{}\" y=\"{}\" fill=\"{colour}\">{}</text>",
            points.join(" "),
            left + 8.0,
            top + 14.0 + 14.0 * index as f64,
            line.name
        );
    }
}
