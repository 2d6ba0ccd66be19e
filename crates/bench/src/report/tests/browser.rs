//! The page in a browser, if there is one: it shows no more than fits the screen's width, fetches nothing, breaks no rule
//! of its own policy, and its script works.
//!
//! Looked for in `CHROMIUM`, then on the PATH, then among Playwright's browsers. Where there is none the test says so and
//! passes; `PLIMSOLL_NEED_CHROMIUM=1` makes that a failure. `PLIMSOLL_PICTURES=DIR` keeps the pictures.

use std::path::{Path, PathBuf};
use std::process::Command;

use super::html;
use crate::report::sample;

const NAMES: [&str; 4] = ["chromium", "chromium-browser", "google-chrome", "google-chrome-stable"];

#[test]
fn a_browser_shows_the_page() {
    let Some(browser) = find() else {
        assert!(std::env::var_os("PLIMSOLL_NEED_CHROMIUM").is_none(), "there is no Chromium; set CHROMIUM to one");
        eprintln!("SKIPPED: no Chromium was found, so the page was not looked at; set CHROMIUM to one");
        return;
    };
    let folder = std::env::temp_dir().join(format!("plimsoll-page-{}", std::process::id()));
    std::fs::create_dir_all(&folder).expect("a folder");
    let page = folder.join("report.html");
    std::fs::write(&page, html(&sample::report())).expect("written");
    let probed = folder.join("probed.html");
    std::fs::write(&probed, probe(&html(&sample::report()))).expect("written");
    for width in [360, 1280] {
        let dom = run(&browser, &folder, width, &["--dump-dom"], &probed);
        let found = dom.split_once("data-probe=\"").and_then(|(_, rest)| rest.split_once('"')).map(|(found, _)| found);
        // Whether the document is wider than the screen, what was fetched, whether a tip shows, and titles without size.
        assert_eq!(found, Some("wide=false fetched=0 tip=true small=0"), "at {width} px");
    }
    if let Some(pictures) = std::env::var_os("PLIMSOLL_PICTURES").map(PathBuf::from) {
        std::fs::create_dir_all(&pictures).expect("a folder");
        std::fs::copy(&page, pictures.join("report.html")).expect("copied");
        for (width, name) in [(390, "phone"), (1280, "desktop")] {
            for dark in [false, true] {
                let file = pictures.join(format!("{name}-{}.png", if dark { "dark" } else { "light" }));
                let mut options = vec![format!("--screenshot={}", file.display()), "--hide-scrollbars".to_owned()];
                if dark {
                    options.push("--blink-settings=preferredColorScheme=0".to_owned());
                }
                let options: Vec<&str> = options.iter().map(String::as_str).collect();
                run(&browser, &folder, width, &options, &page);
                assert!(std::fs::metadata(&file).is_ok_and(|picture| picture.len() > 10_000), "{}", file.display());
            }
        }
    }
    std::fs::remove_dir_all(&folder).expect("removed");
}

/// The page with a script that looks at it, which its policy must be widened for.
fn probe(html: &str) -> String {
    let script = r#"<script>
const chart = [...document.querySelectorAll(".chart")].find(c => getComputedStyle(c).display !== "none");
const dot = chart.querySelector("circle.dot"), at = dot.getBoundingClientRect();
chart.dispatchEvent(new PointerEvent("pointermove", {clientX: at.left + 2, clientY: at.top + 2, bubbles: true}));
const tip = document.querySelector(".tip.on");
const small = [...document.querySelectorAll("h1, h2, td")].filter(e => parseFloat(getComputedStyle(e).fontSize) < 12);
document.body.dataset.probe = [
  "wide=" + (document.documentElement.scrollWidth > innerWidth),
  "fetched=" + performance.getEntriesByType("resource").length,
  "tip=" + Boolean(tip && tip.textContent.includes("output tok/s")),
  "small=" + small.length].join(" ");
</script></body>"#;
    let hash = html.split_once("script-src '").and_then(|(_, rest)| rest.split_once('\'')).map(|(hash, _)| hash);
    let hash = hash.expect("a policy");
    // The page's own script must run by its hash, so the policy stays; the probe is let in by a nonce.
    html.replace(&format!("'{hash}'"), &format!("'{hash}' 'nonce-probe'"))
        .replace("</body>", &script.replace("<script>", "<script nonce=\"probe\">"))
}

fn run(browser: &Path, folder: &Path, width: u32, options: &[&str], page: &Path) -> String {
    let output = Command::new(browser)
        .args(["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run"])
        .arg(format!("--user-data-dir={}", folder.join("profile").display()))
        .arg(format!("--window-size={width},{}", if width < 600 { 13_000 } else { 6000 }))
        .args(options)
        .arg(format!("file://{}", page.display()))
        .output()
        .expect("the browser starts");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn find() -> Option<PathBuf> {
    if let Some(named) = std::env::var_os("CHROMIUM").filter(|path| !path.is_empty()) {
        return Some(PathBuf::from(named));
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    let on_path = std::env::split_paths(&path).flat_map(|folder| NAMES.map(|name| folder.join(name)));
    on_path.into_iter().find(|file| file.is_file()).or_else(playwrights)
}

/// `~/.cache/ms-playwright/chromium-NUMBER/chrome-linux/chrome`.
fn playwrights() -> Option<PathBuf> {
    let cache = PathBuf::from(std::env::var_os("HOME")?).join(".cache/ms-playwright");
    let browsers = std::fs::read_dir(cache).ok()?.filter_map(|entry| Some(entry.ok()?.path()));
    let chrome = |folder: PathBuf| ["chrome-linux", "chrome-linux64"].map(|inner| folder.join(inner).join("chrome"));
    browsers.flat_map(chrome).find(|file| file.is_file())
}
