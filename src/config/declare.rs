//! `section!`: one table of the configuration, each key declared once.

/// Declares a table of the configuration: its struct, its defaults, and `keys`, which visits each key in the order of the
/// file. A field is `field: Type = default => method(arguments);`, by a method of [`super::table::TableVisitor`]:
///
/// - `key(kind)`: the key of that name; the field's doc is the key's line in every generated page;
/// - `table(keys)`: a table whose keys `keys` visits, `optional(blank, keys)`: one that may be absent, or
///   `list(blank, keys)`: any number of them.
///
/// `field: Type = default;` is no key, and `field: Type = default, kind;` is short for `key`.
///
/// Where keys have no default, `: fn NAME(…)` after the struct's name makes the constructor that takes them; otherwise the
/// struct implements `Default`.
macro_rules! section {
    ($(#[$meta:meta])* pub struct $name:ident { $($fields:tt)* }) => {
        section! { $(#[$meta])* pub struct $name: pub(in crate::config) fn defaults() { $($fields)* } }

        impl Default for $name {
            fn default() -> Self {
                Self::defaults()
            }
        }
    };
    ($(#[$meta:meta])* pub struct $name:ident: $vis:vis fn $new:ident($($without:ident: $type:ty),*) {
        $($(#[doc = $doc:literal])+ pub $field:ident: $of:ty = $default:expr $(, $kind:expr)? $(=> $method:ident($($argument:expr),+))?;)+
    }) => {
        $(#[$meta])*
        pub struct $name {
            $($(#[doc = $doc])+ pub $field: $of,)+
        }

        impl $name {
            /// The defaults, with these values where there are none.
            $vis fn $new($($without: $type),*) -> Self {
                Self { $($field: $default,)+ }
            }

            /// Visits each key.
            pub(in crate::config) fn keys(&mut self, table: &mut $crate::config::table::TableVisitor<'_>) {
                $(section!(@visit self, table, $field, concat!($($doc),+) $(, $kind)? $(=> $method($($argument),+))?);)+
            }
        }
    };
    (@visit $this:ident, $table:ident, $field:ident, $doc:expr) => {};
    (@visit $this:ident, $table:ident, $field:ident, $doc:expr, $kind:expr) => {
        section!(@visit $this, $table, $field, $doc => key($kind))
    };
    (@visit $this:ident, $table:ident, $field:ident, $doc:expr => $method:ident($($argument:expr),+)) => {
        $table.$method(stringify!($field), $doc, &mut $this.$field, $($argument),+)
    };
}

pub(super) use section;
