//! `google.api.http` annotations, read from method options by their field numbers' names.

use http::Method;
use prost_reflect::{DynamicMessage, MethodDescriptor, ReflectMessage, Value};

const EXTENSION: &str = "google.api.http";

/// One method and path of an rpc.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct HttpBinding {
    pub(crate) method: Method,
    pub(crate) template: String,
    /// `*`, a field or empty.
    pub(crate) body: String,
    /// A field or empty.
    pub(crate) response_body: String,
}

/// The bindings of an rpc in the order in which they are declared; none without annotation.
pub(crate) fn bindings(method: &MethodDescriptor) -> Vec<HttpBinding> {
    let Some(extension) = method.parent_pool().get_extension_by_name(EXTENSION) else {
        return Vec::new();
    };
    let options = method.options();
    if !options.has_extension(&extension) {
        return Vec::new();
    }
    let rule = options.get_extension(&extension);
    let Value::Message(rule) = rule.as_ref() else {
        return Vec::new();
    };
    let mut found: Vec<HttpBinding> = binding(rule).into_iter().collect();
    // Additional bindings do not nest: http.proto allows one level.
    if let Some(Value::List(more)) = rule.get_field_by_name("additional_bindings").as_deref() {
        for additional in more {
            if let Value::Message(additional) = additional {
                found.extend(binding(additional));
            }
        }
    }
    found
}

fn binding(rule: &DynamicMessage) -> Option<HttpBinding> {
    let pattern = rule
        .descriptor()
        .oneofs()
        .find(|oneof| oneof.name() == "pattern")?;
    let field = pattern.fields().find(|field| rule.has_field(field))?;
    let (method, template) = match (field.name(), rule.get_field(&field).as_ref()) {
        ("custom", Value::Message(custom)) => {
            let kind = text(custom, "kind").to_ascii_uppercase();
            (kind.parse().ok()?, text(custom, "path"))
        }
        (verb, Value::String(template)) => {
            (verb.to_ascii_uppercase().parse().ok()?, template.clone())
        }
        _ => return None,
    };
    Some(HttpBinding {
        method,
        template,
        body: text(rule, "body"),
        response_body: text(rule, "response_body"),
    })
}

fn text(message: &DynamicMessage, field: &str) -> String {
    match message.get_field_by_name(field).as_deref() {
        Some(Value::String(text)) => text.clone(),
        _ => String::new(),
    }
}
