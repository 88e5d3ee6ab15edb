//! The chart: for each load, how much of the direct way's throughput each contender reaches.

use std::fmt::Write as _;

use super::contenders::Contender;
use super::figures::{Figures, Metric, spread};
use super::scenarios::LOADS;

const LABELS: f64 = 400.0;
const BARS: f64 = 420.0;
const BAR: f64 = 13.0;
const GAP: f64 = 14.0;

/// Bars are drawn for these.
pub(super) const SHOWN: [(Contender, &str); 7] = [
    (Contender::NotCaptured, "#7fb3a8"),
    (Contender::Divert, "#0f766e"),
    (Contender::Insert, "#115e59"),
    (Contender::Before, "#94a3b8"),
    (Contender::Nginx, "#d97706"),
    (Contender::Haproxy, "#7c3aed"),
    (Contender::Envoy, "#be185d"),
];

/// An SVG image.
pub(super) fn draw(machine: &str, figures: &Figures) -> String {
    let (mut body, mut y) = (String::new(), 72.0);
    let mut seen = Vec::new();
    for load in LOADS {
        let bars: Vec<_> = SHOWN
            .iter()
            .filter_map(|(contender, colour)| {
                let ratios = figures.ratios(load.name, Metric::Rate, *contender, Contender::Direct)?;
                Some((*contender, *colour, spread(&ratios)?.median))
            })
            .collect();
        if bars.is_empty() {
            continue;
        }
        let middle = y + bars.len() as f64 * BAR / 2.0 + 4.0;
        // Infallible for a String, here and below.
        let _ = writeln!(
            body,
            r#"<text x="{:.0}" y="{middle:.0}" text-anchor="end">{}</text>"#,
            LABELS - 10.0,
            escaped(load.title)
        );
        for (contender, colour, ratio) in bars {
            let width = ratio.clamp(0.0, 1.1) * BARS;
            let _ = writeln!(
                body,
                r#"<rect x="{LABELS}" y="{y:.0}" width="{width:.1}" height="{:.0}" fill="{colour}"/><text x="{:.1}" y="{:.0}" class="value">{ratio:.2}</text>"#,
                BAR - 2.0,
                LABELS + width + 4.0,
                y + BAR - 4.0
            );
            y += BAR;
            if !seen.contains(&(contender, colour)) {
                seen.push((contender, colour));
            }
        }
        y += GAP;
    }
    let mut legend = String::new();
    for (place, (contender, colour)) in seen.iter().enumerate() {
        let x = LABELS + place as f64 * 95.0;
        let _ = writeln!(
            legend,
            r#"<rect x="{x:.0}" y="46" width="11" height="11" fill="{colour}"/><text x="{:.0}" y="56">{}</text>"#,
            x + 15.0,
            contender.name()
        );
    }
    let (width, height, one) = (LABELS + BARS * 1.1 + 110.0, y + 10.0, LABELS + BARS);
    format!(
        r##"<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:.0} {height:.0}" font-family="sans-serif" font-size="12">
<style>.value {{ font-size: 10px; fill: #475569 }}</style>
<rect width="100%" height="100%" fill="#ffffff"/>
<text x="16" y="22" font-size="15">Requests a second, of those without anything between client and server (median of the rounds)</text>
<text x="16" y="38" class="value">{}</text>
{legend}<line x1="{one:.0}" y1="64" x2="{one:.0}" y2="{:.0}" stroke="#cbd5e1"/>
{body}</svg>
"##,
        escaped(machine),
        height - 10.0
    )
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::scenarios::KEEP_ALIVE_32;

    #[test]
    fn there_is_a_bar_for_each_contender_that_was_measured() {
        let mut figures = Figures::default();
        for (contender, rate) in
            [(Contender::Direct, 100.0), (Contender::Divert, 50.0), (Contender::Nginx, 40.0)]
        {
            figures.add(KEEP_ALIVE_32, contender, Metric::Rate, rate);
        }
        let svg = draw("a <machine>", &figures);
        assert_eq!(svg.matches(r#"class="value">0."#).count(), 2, "{svg}");
        assert!(svg.contains("a &lt;machine>") && svg.contains(">0.50<"), "{svg}");
    }
}
