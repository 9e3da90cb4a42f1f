//! Plans: what a descriptor says about a message, laid out for transcoding.
//!
//! A plan is built once when descriptors arrive and never changes. Fields are sorted by number for
//! reading the wire; a table from both JSON and proto names leads to them when reading JSON.
//! Nothing here reads a byte of a request.

use std::collections::HashMap;
use std::collections::HashSet;

use prost_reflect::{
    DescriptorPool, EnumDescriptor, ExtensionDescriptor, FieldDescriptor, Kind as ProtoKind,
    MessageDescriptor, Value,
};

use super::wire::WireType;

/// Which message of a [`Plans`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct MessageId(usize);

/// Which enum of a [`Plans`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct EnumId(usize);

/// Which `bytes` fields are shown as text in JSON.
#[derive(Clone, Debug, Default)]
pub(crate) struct TextBytes {
    /// Full name of a boolean extension of `google.protobuf.FieldOptions`; empty for none.
    pub(crate) option: String,
    /// Full names of fields, `package.Message.field`.
    pub(crate) fields: HashSet<String>,
}

/// The plans of every message and enum of one descriptor pool.
#[derive(Debug)]
pub(crate) struct Plans {
    pool: DescriptorPool,
    messages: Vec<MessagePlan>,
    enums: Vec<EnumPlan>,
    by_name: HashMap<String, MessageId>,
}

/// One message.
#[derive(Debug)]
pub(crate) struct MessagePlan {
    pub(crate) descriptor: MessageDescriptor,
    pub(crate) shape: Shape,
    /// Sorted by number.
    pub(crate) fields: Vec<FieldPlan>,
    /// JSON name and proto name to position in `fields`.
    names: HashMap<Box<str>, usize>,
}

/// How a message looks in JSON: an object of its fields, or one of the well-known forms.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Shape {
    Object,
    Timestamp,
    Duration,
    FieldMask,
    Wrapper,
    Struct,
    Value,
    ListValue,
    Any,
}

/// One field.
#[derive(Debug)]
pub(crate) struct FieldPlan {
    pub(crate) number: u32,
    pub(crate) json_name: Box<str>,
    pub(crate) proto_name: Box<str>,
    pub(crate) kind: Kind,
    pub(crate) label: Label,
    /// The oneof it belongs to (not the synthetic one of `optional`), by position in the message.
    pub(crate) oneof: Option<usize>,
}

/// How often a field occurs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Label {
    /// Once, and its default is the same as its absence.
    Implicit,
    /// Once, and absence is not the default.
    Explicit,
    List {
        packed: bool,
    },
    /// `kind` is the value's.
    Map {
        key: Kind,
    },
}

/// The type of a value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Double,
    Float,
    Int32,
    Int64,
    Uint32,
    Uint64,
    Sint32,
    Sint64,
    Fixed32,
    Fixed64,
    Sfixed32,
    Sfixed64,
    Bool,
    String,
    /// Base64 in JSON.
    Bytes,
    /// Bytes that usually hold text: a plain string in JSON.
    TextBytes,
    Enum(EnumId),
    Message(MessageId),
    Group(MessageId),
}

impl Kind {
    /// How a value of this kind is encoded when it is not packed.
    pub(crate) const fn wire_type(self) -> WireType {
        match self {
            Self::Double | Self::Fixed64 | Self::Sfixed64 => WireType::Fixed64,
            Self::Float | Self::Fixed32 | Self::Sfixed32 => WireType::Fixed32,
            Self::Int32
            | Self::Int64
            | Self::Uint32
            | Self::Uint64
            | Self::Sint32
            | Self::Sint64
            | Self::Bool
            | Self::Enum(_) => WireType::Varint,
            Self::String | Self::Bytes | Self::TextBytes | Self::Message(_) => WireType::Bytes,
            Self::Group(_) => WireType::StartGroup,
        }
    }

    /// Whether a list of this kind may be packed into one length-delimited field.
    pub(crate) const fn is_packable(self) -> bool {
        matches!(
            self.wire_type(),
            WireType::Varint | WireType::Fixed32 | WireType::Fixed64
        )
    }
}

/// One enum.
#[derive(Debug)]
pub(crate) struct EnumPlan {
    by_number: HashMap<i32, Box<str>>,
    by_name: HashMap<Box<str>, i32>,
    pub(crate) default: i32,
    /// `google.protobuf.NullValue`, which is `null` in JSON.
    pub(crate) is_null: bool,
}

impl EnumPlan {
    pub(crate) fn name_of(&self, number: i32) -> Option<&str> {
        self.by_number.get(&number).map(AsRef::as_ref)
    }

    pub(crate) fn number_of(&self, name: &str) -> Option<i32> {
        self.by_name.get(name).copied()
    }
}

impl MessagePlan {
    /// The field with this JSON or proto name and its position.
    pub(crate) fn field(&self, name: &str) -> Option<(usize, &FieldPlan)> {
        let position = *self.names.get(name)?;
        Some((position, self.fields.get(position)?))
    }

    pub(crate) fn full_name(&self) -> &str {
        self.descriptor.full_name()
    }
}

impl Plans {
    /// Plans of no type at all.
    pub(crate) fn none() -> Self {
        Self::new(DescriptorPool::new(), &TextBytes::default())
    }

    /// Plans every type of the pool. Types cannot be wrong here: the pool has checked them.
    pub(crate) fn new(pool: DescriptorPool, text: &TextBytes) -> Self {
        let mut builder = Builder {
            message_ids: HashMap::new(),
            enum_ids: HashMap::new(),
            text,
            text_option: pool.get_extension_by_name(&text.option),
        };
        for (position, message) in pool.all_messages().enumerate() {
            builder
                .message_ids
                .insert(message.full_name().to_owned(), MessageId(position));
        }
        for (position, plan) in pool.all_enums().enumerate() {
            builder
                .enum_ids
                .insert(plan.full_name().to_owned(), EnumId(position));
        }
        let messages = pool
            .all_messages()
            .map(|message| builder.message(message))
            .collect();
        let enums = pool
            .all_enums()
            .map(|descriptor| enum_plan(&descriptor))
            .collect();
        Self {
            pool,
            messages,
            enums,
            by_name: builder.message_ids,
        }
    }

    pub(crate) const fn pool(&self) -> &DescriptorPool {
        &self.pool
    }

    pub(crate) fn find(&self, full_name: &str) -> Option<MessageId> {
        self.by_name.get(full_name).copied()
    }

    /// # Panics
    /// Never: ids are made by this `Plans` only, one per element.
    #[expect(
        clippy::indexing_slicing,
        reason = "ids are positions handed out by `new`"
    )]
    pub(crate) fn message(&self, id: MessageId) -> &MessagePlan {
        &self.messages[id.0]
    }

    /// # Panics
    /// Never: ids are made by this `Plans` only, one per element.
    #[expect(
        clippy::indexing_slicing,
        reason = "ids are positions handed out by `new`"
    )]
    pub(crate) fn enumeration(&self, id: EnumId) -> &EnumPlan {
        &self.enums[id.0]
    }
}

struct Builder<'a> {
    message_ids: HashMap<String, MessageId>,
    enum_ids: HashMap<String, EnumId>,
    text: &'a TextBytes,
    text_option: Option<ExtensionDescriptor>,
}

impl Builder<'_> {
    fn message(&self, descriptor: MessageDescriptor) -> MessagePlan {
        let oneofs: HashMap<String, usize> = descriptor
            .oneofs()
            .filter(|oneof| !oneof.is_synthetic())
            .enumerate()
            .map(|(position, oneof)| (oneof.full_name().to_owned(), position))
            .collect();
        let mut fields: Vec<FieldPlan> = descriptor
            .fields()
            .filter_map(|field| self.field(&field, &oneofs))
            .collect();
        fields.sort_by_key(|field| field.number);
        let mut names = HashMap::with_capacity(fields.len() * 2);
        for (position, field) in fields.iter().enumerate() {
            names.insert(field.proto_name.clone(), position);
        }
        // A JSON name wins over another field's proto name: it is what we print.
        for (position, field) in fields.iter().enumerate() {
            names.insert(field.json_name.clone(), position);
        }
        let shape = shape_of(descriptor.full_name());
        MessagePlan {
            descriptor,
            shape,
            fields,
            names,
        }
    }

    /// `None` only for a type that the pool does not list, which it does not build.
    fn field(&self, field: &FieldDescriptor, oneofs: &HashMap<String, usize>) -> Option<FieldPlan> {
        let (kind, label) = if field.is_map() {
            let ProtoKind::Message(entry) = field.kind() else {
                return None;
            };
            let key = self.kind(&entry.map_entry_key_field())?;
            (
                self.kind(&entry.map_entry_value_field())?,
                Label::Map { key },
            )
        } else if field.is_list() {
            (
                self.kind(field)?,
                Label::List {
                    packed: field.is_packed(),
                },
            )
        } else if field.supports_presence() {
            (self.kind(field)?, Label::Explicit)
        } else {
            (self.kind(field)?, Label::Implicit)
        };
        Some(FieldPlan {
            number: field.number(),
            json_name: field.json_name().into(),
            proto_name: field.name().into(),
            kind,
            label,
            oneof: field
                .containing_oneof()
                .and_then(|oneof| oneofs.get(oneof.full_name()).copied()),
        })
    }

    fn kind(&self, field: &FieldDescriptor) -> Option<Kind> {
        Some(match field.kind() {
            ProtoKind::Double => Kind::Double,
            ProtoKind::Float => Kind::Float,
            ProtoKind::Int32 => Kind::Int32,
            ProtoKind::Int64 => Kind::Int64,
            ProtoKind::Uint32 => Kind::Uint32,
            ProtoKind::Uint64 => Kind::Uint64,
            ProtoKind::Sint32 => Kind::Sint32,
            ProtoKind::Sint64 => Kind::Sint64,
            ProtoKind::Fixed32 => Kind::Fixed32,
            ProtoKind::Fixed64 => Kind::Fixed64,
            ProtoKind::Sfixed32 => Kind::Sfixed32,
            ProtoKind::Sfixed64 => Kind::Sfixed64,
            ProtoKind::Bool => Kind::Bool,
            ProtoKind::String => Kind::String,
            ProtoKind::Bytes if self.is_text(field) => Kind::TextBytes,
            ProtoKind::Bytes => Kind::Bytes,
            ProtoKind::Enum(enumeration) => {
                Kind::Enum(*self.enum_ids.get(enumeration.full_name())?)
            }
            ProtoKind::Message(message) => {
                let id = *self.message_ids.get(message.full_name())?;
                if field.is_group() {
                    Kind::Group(id)
                } else {
                    Kind::Message(id)
                }
            }
        })
    }

    fn is_text(&self, field: &FieldDescriptor) -> bool {
        let by_option = self.text_option.as_ref().is_some_and(|option| {
            matches!(
                field.options().get_extension(option).as_ref(),
                Value::Bool(true)
            )
        });
        by_option || self.text.fields.contains(field.full_name())
    }
}

fn enum_plan(descriptor: &EnumDescriptor) -> EnumPlan {
    let mut by_number = HashMap::new();
    let mut by_name = HashMap::new();
    for value in descriptor.values() {
        // With aliases the first name declared is the one that is printed.
        by_number
            .entry(value.number())
            .or_insert_with(|| value.name().into());
        by_name.insert(value.name().into(), value.number());
    }
    EnumPlan {
        by_number,
        by_name,
        default: descriptor.default_value().number(),
        is_null: descriptor.full_name() == "google.protobuf.NullValue",
    }
}

fn shape_of(full_name: &str) -> Shape {
    let Some(name) = full_name.strip_prefix("google.protobuf.") else {
        return Shape::Object;
    };
    match name {
        "Timestamp" => Shape::Timestamp,
        "Duration" => Shape::Duration,
        "FieldMask" => Shape::FieldMask,
        "DoubleValue" | "FloatValue" | "Int64Value" | "UInt64Value" | "Int32Value"
        | "UInt32Value" | "BoolValue" | "StringValue" | "BytesValue" => Shape::Wrapper,
        "Struct" => Shape::Struct,
        "Value" => Shape::Value,
        "ListValue" => Shape::ListValue,
        "Any" => Shape::Any,
        _ => Shape::Object,
    }
}
