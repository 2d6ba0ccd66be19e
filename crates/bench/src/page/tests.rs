//! What holds of every page, whatever is drawn on it.

use proptest::prelude::*;

use super::*;

const HOSTILE: &str =
    "</title></script><script>alert(1)</script><img src=http://evil.example/x onerror=alert(1)> \u{0}\u{202e}]]>&\"'";

fn chart(points: Vec<Point>, line: Line, scale: Scale) -> Chart {
    let x = points.first().map_or(1.0, |point| point.x);
    Chart {
        title: HOSTILE.to_owned(),
        about: HOSTILE.to_owned(),
        x: Axis::new(HOSTILE, scale),
        y: Axis::new(HOSTILE, scale),
        series: vec![Series { name: HOSTILE.to_owned(), line, color: Color::Blue, points }],
        spans: vec![Span { name: HOSTILE.to_owned(), from: x, to: x * 2.0, color: Color::Red }],
        rules: vec![
            Rule::X { name: HOSTILE.to_owned(), at: x, color: Color::Red },
            Rule::Y { name: HOSTILE.to_owned(), at: x, color: Color::Red },
        ],
        wide: true,
    }
}

fn page(sections: Vec<Section>) -> Page {
    Page {
        title: HOSTILE.to_owned(),
        answer: HOSTILE.to_owned(),
        detail: HOSTILE.to_owned(),
        subject: HOSTILE.to_owned(),
        facts: vec![Fact { name: HOSTILE.to_owned(), value: HOSTILE.to_owned(), ..Fact::default() }],
        warnings: vec![HOSTILE.to_owned()],
        findings: vec![HOSTILE.to_owned()],
        sections,
        notes: vec![HOSTILE.to_owned()],
    }
}

/// Holds of all pages: well-formed, nothing fetched, nothing run but the page's own script, and no attribute that a
/// renderer would choke on.
pub(crate) fn check(html: &str) {
    let options = roxmltree::ParsingOptions { allow_dtd: true, ..Default::default() };
    let document = roxmltree::Document::parse_with_options(html, options).expect("well-formed");
    let allowed = [
        "html", "head", "meta", "title", "style", "body", "header", "main", "div", "section", "h1", "h2", "p", "bdi",
        "strong", "small", "span", "dl", "dt", "dd", "ul", "li", "details", "summary", "table", "thead", "tbody", "tr",
        "th", "td", "script", "svg", "g", "path", "rect", "circle", "text", "desc",
    ];
    for node in document.descendants().filter(roxmltree::Node::is_element) {
        let name = node.tag_name().name();
        assert!(allowed.contains(&name), "an element <{name}>");
        for attribute in node.attributes() {
            let (key, value) = (attribute.name(), attribute.value());
            assert!(!key.starts_with("on") && !["src", "href", "style", "action"].contains(&key), "{key}={value}");
            let is_drawing = ["d", "x", "y", "cx", "cy", "width", "height", "viewBox", "r"].contains(&key);
            if is_drawing && name != "meta" {
                assert!(!["NaN", "inf", "e"].iter().any(|bad| value.contains(bad)), "<{name} {key}={value}>");
            }
            if matches!(key, "width" | "height" | "r") && is_drawing {
                assert!(value.parse::<f64>().is_ok_and(|size| size >= 0.0), "<{name} {key}={value}>");
            }
        }
    }
    let scripts: Vec<_> = document.descendants().filter(|node| node.has_tag_name("script")).collect();
    assert_eq!(scripts.iter().map(|node| node.text()).collect::<Vec<_>>(), [Some(SCRIPT)]);
    assert!(!STYLE.contains("url(") && !STYLE.contains("@import") && !SCRIPT.contains("fetch"));
    for id in document.descendants().filter_map(|node| node.attribute("id")) {
        let bearers = document.descendants().filter(|node| node.attribute("id") == Some(id)).count();
        assert_eq!(bearers, 1, "id {id} is there {bearers} times");
    }
}

/// Any number: ordinary ones, and those that a broken report may hold.
fn numbers() -> impl Strategy<Value = f64> {
    prop_oneof![
        4 => 0.0..1e6_f64,
        1 => prop::sample::select(vec![0.0, -0.0, -1.0, 1e-320, 1e300, -1e300, f64::MAX, f64::NAN, f64::INFINITY]),
        1 => any::<f64>(),
    ]
}

fn points() -> impl Strategy<Value = Vec<Point>> {
    let point = (numbers(), numbers(), prop::option::of((numbers(), numbers())))
        .prop_map(|(x, y, interval)| Point { interval, ..Point::new(x, y) });
    prop::collection::vec(point, 0..12)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]
    #[test]
    fn whatever_is_drawn_the_page_is_sound(
        points in points(),
        line in prop::sample::select(vec![Line::Solid, Line::Thin, Line::Dots]),
        scale in prop::sample::select(vec![Scale::Linear, Scale::Doubling, Scale::Decades]),
        amounts in prop::collection::vec(numbers(), 0..6),
    ) {
        let bars = Bars {
            title: HOSTILE.to_owned(),
            x: HOSTILE.to_owned(),
            categories: vec![HOSTILE.to_owned(); amounts.len()],
            parts: vec![Part { name: HOSTILE.to_owned(), color: Color::Grey, amounts }; 2],
            ..Bars::default()
        };
        let sections = vec![Section::Chart(chart(points, line, scale)), Section::Bars(bars)];
        check(&page(sections).to_string());
    }
}

#[test]
fn an_empty_page_is_sound() {
    check(&Page::default().to_string());
    check(&page(vec![Section::Table(Table::default()), Section::Bars(Bars::default())]).to_string());
}

#[test]
fn markup_in_names_is_shown_and_not_run() {
    let html = page(vec![Section::Chart(chart(vec![Point::new(1.0, 2.0)], Line::Solid, Scale::Doubling))]).to_string();
    check(&html);
    assert!(!html.contains("<img") && !html.contains("alert(1)</script>"));
    assert!(html.contains("&lt;script&gt;alert(1)"));
}

/// The page's policy names its script by its hash; without it the browser would not run it.
#[test]
fn the_policy_lets_the_script_run() {
    use sha2::{Digest, Sha256};
    assert_eq!(base64(&Sha256::digest(SCRIPT)), SCRIPT_HASH, "put this into SCRIPT_HASH");
}

fn base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut out = String::new();
    for chunk in bytes.chunks(3) {
        let bits = (0..3).fold(0u32, |bits, i| bits << 8 | u32::from(chunk.get(i).copied().unwrap_or(0)));
        (0..4).for_each(|i| {
            let digit = DIGITS[(bits >> (18 - 6 * i)) as usize & 63] as char;
            out.push(if i <= chunk.len() { digit } else { '=' });
        });
    }
    out
}
