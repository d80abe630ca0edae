//! The status page: one file that asks nothing of anybody but this server.

use std::sync::LazyLock;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

/// The page.
pub(super) const PAGE: &str = include_str!("status.html");

/// What a browser may do with it: run its script and use its style, which are named by their hashes, and ask this
/// server.
pub(super) static POLICY: LazyLock<String> = LazyLock::new(|| {
    format!(
        "default-src 'none'; script-src '{}'; style-src '{}'; connect-src 'self'; img-src data:; base-uri 'none'; \
         form-action 'none'; frame-ancestors 'none'",
        hash_of("script"),
        hash_of("style")
    )
});

/// What stands in the only element of that name, exactly.
fn content(element: &str) -> &'static str {
    let (opening, closing) = (format!("<{element}>"), format!("</{element}>"));
    let inside = PAGE.split_once(&opening).and_then(|(_, rest)| rest.split_once(&closing));
    inside.map(|(inside, _)| inside).expect("the page has one such element")
}

fn hash_of(element: &str) -> String {
    let digest = ring::digest::digest(&ring::digest::SHA256, content(element).as_bytes());
    format!("sha256-{}", STANDARD.encode(digest))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_is_one_file_and_asks_for_nothing_elsewhere() {
        for element in ["script", "style"] {
            assert_eq!(PAGE.matches(&format!("<{element}")).count(), 1, "{element}");
            assert!(!content(element).trim().is_empty());
        }
        // A browser refuses these under the policy.
        for forbidden in ["http://", "https://", " style=\"", " onclick=", "innerHTML", "eval(", "src=\""] {
            let allowed = PAGE.replace("http://www.w3.org/2000/svg", "");
            assert!(!allowed.contains(forbidden), "{forbidden}");
        }
        assert!(POLICY.starts_with("default-src 'none'; script-src 'sha256-"), "{}", *POLICY);
    }
}
