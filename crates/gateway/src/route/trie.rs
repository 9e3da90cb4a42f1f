//! The route table: a trie over path segments in which the more literal route wins.
//!
//! At each segment a literal is tried before `*`, and `*` before `**`; when a branch leads nowhere
//! the next is tried. A `:verb` is looked for before the same text as part of a value. Templates
//! are few and short, so the trie is small; its depth bounds the recursion.

use std::collections::HashMap;

use http::Method;
use percent_encoding::percent_decode_str;

use super::template::{Segment, Template};

/// Routes by method and path; `R` is what a match yields.
#[derive(Debug)]
pub(crate) struct Trie<R> {
    root: Node,
    routes: Vec<R>,
}

#[derive(Debug, Default)]
struct Node {
    literals: HashMap<Box<str>, Node>,
    one: Option<Box<Node>>,
    /// Where paths that end here lead.
    ends: Vec<End>,
    /// Where paths lead of which the rest is `**`.
    rest_ends: Vec<End>,
}

#[derive(Debug)]
struct End {
    verb: Option<Box<str>>,
    method: Method,
    route: usize,
}

/// What was found for a path.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Match<'t, R> {
    Found(&'t R),
    /// The path exists, with these methods, sorted.
    OtherMethods(Vec<Method>),
    Nothing,
}

impl<R> Default for Trie<R> {
    fn default() -> Self {
        Self {
            root: Node::default(),
            routes: Vec::new(),
        }
    }
}

impl<R> Trie<R> {
    /// Adds a route; false, and no change, if the same method and path have one already.
    pub(crate) fn insert(&mut self, method: Method, template: &Template, route: R) -> bool {
        let mut node = &mut self.root;
        let mut is_open = false;
        for segment in &template.segments {
            match segment {
                Segment::Literal(text) => {
                    let text = percent_decode_str(text).decode_utf8_lossy();
                    node = node.literals.entry(text.into()).or_default();
                }
                Segment::One => node = node.one.get_or_insert_default(),
                Segment::Rest => is_open = true,
            }
        }
        let ends = if is_open {
            &mut node.rest_ends
        } else {
            &mut node.ends
        };
        let verb: Option<Box<str>> = template.verb.as_deref().map(Into::into);
        if ends
            .iter()
            .any(|end| end.method == method && end.verb == verb)
        {
            return false;
        }
        ends.push(End {
            verb,
            method,
            route: self.routes.len(),
        });
        self.routes.push(route);
        true
    }

    /// Finds the route of a request whose path was cut into raw segments.
    pub(crate) fn find(&self, method: &Method, segments: &[&str]) -> Match<'_, R> {
        let mut search = Search {
            method,
            allowed: Vec::new(),
        };
        let found = search
            .with_and_without_verb(&self.root, segments)
            .or_else(|| {
                // HEAD is GET without the body, which the HTTP layer leaves out.
                let mut search = Search {
                    method: &Method::GET,
                    allowed: Vec::new(),
                };
                let is_head = method == Method::HEAD;
                is_head
                    .then(|| search.with_and_without_verb(&self.root, segments))
                    .flatten()
            });
        if let Some(route) = found.and_then(|route| self.routes.get(route)) {
            return Match::Found(route);
        }
        if search.allowed.is_empty() {
            return Match::Nothing;
        }
        let mut allowed: Vec<Method> = search.allowed.into_iter().cloned().collect();
        allowed.sort_by(|a, b| a.as_str().cmp(b.as_str()));
        allowed.dedup();
        Match::OtherMethods(allowed)
    }
}

struct Search<'q, 't> {
    method: &'q Method,
    allowed: Vec<&'t Method>,
}

impl<'t> Search<'_, 't> {
    fn with_and_without_verb(&mut self, root: &'t Node, segments: &[&str]) -> Option<usize> {
        let split = segments.split_last().and_then(|(last, head)| {
            let (last, verb) = last.rsplit_once(':')?;
            Some((head, last, verb))
        });
        if let Some((head, last, verb)) = split {
            let mut path = head.to_vec();
            path.push(last);
            let found = self.below(root, &path, Some(verb));
            if found.is_some() {
                return found;
            }
        }
        self.below(root, segments, None)
    }

    /// Depth first; the recursion is as deep as the longest template.
    fn below(&mut self, node: &'t Node, path: &[&str], verb: Option<&str>) -> Option<usize> {
        let Some((segment, rest)) = path.split_first() else {
            let found = self.end(&node.ends, verb);
            return found.or_else(|| self.end(&node.rest_ends, verb));
        };
        if !segment.is_empty() {
            let text = percent_decode_str(segment).decode_utf8_lossy();
            let literal = node.literals.get(text.as_ref());
            let found = literal
                .and_then(|next| self.below(next, rest, verb))
                .or_else(|| {
                    let one = node.one.as_deref();
                    one.and_then(|next| self.below(next, rest, verb))
                });
            if found.is_some() {
                return found;
            }
        }
        let has_trailing_slash = path.last().is_some_and(|last| last.is_empty());
        if has_trailing_slash {
            None
        } else {
            self.end(&node.rest_ends, verb)
        }
    }

    fn end(&mut self, ends: &'t [End], verb: Option<&str>) -> Option<usize> {
        for end in ends.iter().filter(|end| end.verb.as_deref() == verb) {
            if end.method == *self.method {
                return Some(end.route);
            }
            self.allowed.push(&end.method);
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn trie(routes: &[(&str, &'static str)]) -> Trie<&'static str> {
        let mut trie = Trie::default();
        for (method, template) in routes {
            let parsed = Template::parse(template).unwrap();
            assert!(
                trie.insert(method.parse().unwrap(), &parsed, *template),
                "{template}"
            );
        }
        trie
    }

    fn find(trie: &Trie<&'static str>, method: &str, path: &str) -> String {
        let segments = crate::route::path::segments(path).unwrap();
        match trie.find(&method.parse().unwrap(), &segments) {
            Match::Found(route) => (*route).to_owned(),
            Match::OtherMethods(methods) => {
                let names: Vec<&str> = methods.iter().map(Method::as_str).collect();
                format!("405 {}", names.join(", "))
            }
            Match::Nothing => "404".to_owned(),
        }
    }

    #[test]
    fn the_more_literal_route_wins() {
        let trie = trie(&[
            ("GET", "/v1/{name}"),
            ("GET", "/v1/status"),
            ("POST", "/v1/{name}"),
            ("GET", "/v1/{path=**}"),
            ("GET", "/v1/{name}/x"),
            ("GET", "/v1/{name}:check"),
            ("DELETE", "/v1/status:all"),
        ]);
        for (method, path, expected) in [
            ("GET", "/v1/status", "/v1/status"),
            ("GET", "/v1/other", "/v1/{name}"),
            ("POST", "/v1/status", "/v1/{name}"),
            ("GET", "/v1/a/x", "/v1/{name}/x"),
            ("GET", "/v1/a/y", "/v1/{path=**}"),
            ("GET", "/v1/a/x/z", "/v1/{path=**}"),
            ("GET", "/v1", "/v1/{path=**}"),
            ("GET", "/v1/a:check", "/v1/{name}:check"),
            ("GET", "/v1/a:other", "/v1/{name}"),
            ("HEAD", "/v1/other", "/v1/{name}"),
            ("PUT", "/v1/a", "405 GET, POST"),
            ("PUT", "/v1/status:all", "405 DELETE, GET, POST"),
            ("GET", "/v2", "404"),
            ("GET", "/v1/", "404"),
            ("GET", "/v1/%73tatus", "/v1/status"),
            ("GET", "/v1/a%2Fx", "/v1/{name}"),
        ] {
            assert_eq!(find(&trie, method, path), expected, "{method} {path}");
        }
    }

    #[test]
    fn the_same_method_and_path_have_one_route() {
        let mut trie = trie(&[("GET", "/a/{x}")]);
        let same = Template::parse("/a/{y}").unwrap();
        assert!(!trie.insert(Method::GET, &same, "second"));
        assert_eq!(find(&trie, "GET", "/a/b"), "/a/{x}");
    }
}
