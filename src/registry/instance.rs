//! [`Instance`]: one that a service can be had from, and how it is kept.
//!
//! # Layout
//!
//! In the tree `dogsled services`, key: the service's name in braces, `/`, the instance's id; value:
//!
//! ```text
//! version u8 (1), address: length u32, UTF-8; tags u32, each: length u32, UTF-8      (little-endian)
//! ```

pub(crate) use dogsled_storage::kind::SERVICES_TREE_NAME as TREE;

const VERSION: u8 = 1;

/// What the keys of a service's instances begin with; `None`: it cannot be called so.
pub(crate) fn prefix(service: &str) -> Option<String> {
    let is_fit = !service.is_empty() && !service.contains(['{', '}']);
    is_fit.then(|| format!("{{{service}}}/"))
}

/// One that a service can be had from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Instance {
    /// What tells it from the others of its service.
    pub id: String,
    /// Where to reach it.
    pub address: String,
    /// What it says of itself: a zone, a version, a role.
    pub tags: Vec<String>,
}

impl Instance {
    /// Without tags.
    pub fn new(id: impl Into<String>, address: impl Into<String>) -> Instance {
        Instance { id: id.into(), address: address.into(), tags: Vec::new() }
    }

    /// With one tag more.
    #[must_use]
    pub fn tag(mut self, tag: impl Into<String>) -> Instance {
        self.tags.push(tag.into());
        self
    }

    /// Whether it has this tag.
    pub fn has_tag(&self, tag: &str) -> bool {
        self.tags.iter().any(|own| own == tag)
    }

    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut bytes = vec![VERSION];
        let mut put = |text: &str| {
            bytes.extend_from_slice(&(text.len() as u32).to_le_bytes());
            bytes.extend_from_slice(text.as_bytes());
        };
        put(&self.address);
        // As long as a text's length.
        let count = (self.tags.len() as u32).to_le_bytes();
        let mut tags = Vec::new();
        for tag in &self.tags {
            tags.extend_from_slice(&(tag.len() as u32).to_le_bytes());
            tags.extend_from_slice(tag.as_bytes());
        }
        bytes.extend_from_slice(&count);
        bytes.extend_from_slice(&tags);
        bytes
    }

    pub(crate) fn decode(id: &[u8], bytes: &[u8]) -> Option<Instance> {
        let (&VERSION, mut rest) = bytes.split_first()? else { return None };
        let id = String::from_utf8(id.to_vec()).ok()?;
        let address = take_text(&mut rest)?;
        // Not allocated for: it is a claim.
        let count = take_number(&mut rest)?;
        let mut tags = Vec::new();
        for _ in 0..count {
            tags.push(take_text(&mut rest)?);
        }
        rest.is_empty().then_some(Instance { id, address, tags })
    }
}

fn take_number(rest: &mut &[u8]) -> Option<u32> {
    let (number, after) = rest.split_first_chunk()?;
    *rest = after;
    Some(u32::from_le_bytes(*number))
}

fn take_text(rest: &mut &[u8]) -> Option<String> {
    let length = take_number(rest)? as usize;
    let (text, after) = rest.split_at_checked(length)?;
    *rest = after;
    String::from_utf8(text.to_vec()).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_instance_keeps_its_bytes() {
        let instance = Instance::new("7", "a:1").tag("east").tag("");
        let bytes = instance.encode();
        let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(hex, concat!("01", "03000000613a31", "02000000", "0400000065617374", "00000000"));
        assert_eq!(Instance::decode(b"7", &bytes), Some(instance));
        for cut in 0..bytes.len() {
            assert_eq!(Instance::decode(b"7", &bytes[..cut]), None, "cut at {cut}");
        }
        assert_eq!(Instance::decode(b"7", &[&bytes[..], b"x"].concat()), None);
        assert_eq!(Instance::decode(b"\xff", &bytes), None);
        // A count that is a lie.
        assert_eq!(Instance::decode(b"7", &[1, 0, 0, 0, 0, 255, 255, 255, 255]), None);
    }
}
