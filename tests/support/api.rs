//! Public items reduced to their interface: without bodies, documentation, values and private fields.

use syn::{Attribute, Fields, File, ImplItem, Item, ItemImpl, TraitItem, Visibility, parse_quote};

pub(crate) fn is_public(visibility: &Visibility) -> bool {
    matches!(visibility, Visibility::Public(_))
}

pub(crate) fn has(attributes: &[Attribute], name: &str, word: &str) -> bool {
    attributes
        .iter()
        .any(|a| a.path().is_ident(name) && a.parse_args::<syn::Ident>().is_ok_and(|ident| ident == word))
}

pub(crate) fn name_of(item: &Item) -> Option<String> {
    let ident = match item {
        Item::Const(item) => &item.ident,
        Item::Enum(item) => &item.ident,
        Item::Fn(item) => &item.sig.ident,
        Item::Static(item) => &item.ident,
        Item::Struct(item) => &item.ident,
        Item::Trait(item) => &item.ident,
        Item::Type(item) => &item.ident,
        _ => return None,
    };
    Some(ident.to_string())
}

pub(crate) fn visibility(item: &Item) -> Option<&Visibility> {
    match item {
        Item::Const(item) => Some(&item.vis),
        Item::Enum(item) => Some(&item.vis),
        Item::Fn(item) => Some(&item.vis),
        Item::Static(item) => Some(&item.vis),
        Item::Struct(item) => Some(&item.vis),
        Item::Trait(item) => Some(&item.vis),
        Item::Type(item) => Some(&item.vis),
        _ => None,
    }
}

/// Keeps the attributes that users of an item depend on.
fn kept(attributes: &mut Vec<Attribute>) {
    let kept = ["cfg", "deprecated", "derive", "must_use", "non_exhaustive", "repr"];
    attributes.retain(|attribute| kept.iter().any(|name| attribute.path().is_ident(name)));
}

fn outline_fields(fields: &mut Fields, all_public: bool) {
    let mut private = false;
    let mut keep = |field: &mut syn::Field| {
        field.attrs.clear();
        let public = all_public || is_public(&field.vis);
        private |= !public;
        public
    };
    match fields {
        Fields::Named(named) => {
            named.named = std::mem::take(&mut named.named)
                .into_iter()
                .filter_map(|mut f| keep(&mut f).then_some(f))
                .collect();
            if private {
                named.named.push(parse_quote!(_private: _));
            }
        }
        Fields::Unnamed(unnamed) => {
            for field in &mut unnamed.unnamed {
                if !keep(field) {
                    field.ty = parse_quote!(_);
                }
            }
        }
        Fields::Unit => {}
    }
}

/// Returns an item without documentation, bodies, values and private fields.
pub(crate) fn outline(item: &Item) -> Option<Item> {
    let mut item = item.clone();
    match &mut item {
        Item::Const(item) => {
            kept(&mut item.attrs);
            item.expr = parse_quote!(_);
        }
        Item::Static(item) => {
            kept(&mut item.attrs);
            item.expr = parse_quote!(_);
        }
        Item::Enum(item) => {
            kept(&mut item.attrs);
            for variant in &mut item.variants {
                kept(&mut variant.attrs);
                outline_fields(&mut variant.fields, true);
            }
        }
        Item::Fn(item) => {
            kept(&mut item.attrs);
            item.block = parse_quote!({});
        }
        Item::Struct(item) => {
            kept(&mut item.attrs);
            outline_fields(&mut item.fields, false);
        }
        Item::Trait(item) => {
            kept(&mut item.attrs);
            for part in &mut item.items {
                match part {
                    TraitItem::Fn(part) => {
                        kept(&mut part.attrs);
                        part.default = part.default.is_some().then(|| parse_quote!({}));
                    }
                    TraitItem::Const(part) => kept(&mut part.attrs),
                    TraitItem::Type(part) => kept(&mut part.attrs),
                    _ => {}
                }
            }
        }
        Item::Type(item) => kept(&mut item.attrs),
        _ => return None,
    }
    Some(item)
}

pub(crate) fn outline_methods(block: &ItemImpl) -> Option<Item> {
    let mut block = block.clone();
    kept(&mut block.attrs);
    block.items.retain_mut(|part| match part {
        ImplItem::Fn(part) => {
            kept(&mut part.attrs);
            part.block = parse_quote!({});
            is_public(&part.vis)
        }
        ImplItem::Const(part) => {
            kept(&mut part.attrs);
            part.expr = parse_quote!(_);
            is_public(&part.vis)
        }
        _ => false,
    });
    (!block.items.is_empty()).then_some(Item::Impl(block))
}

pub(crate) fn outline_trait_impl(block: &ItemImpl) -> Item {
    let mut block = block.clone();
    kept(&mut block.attrs);
    block.items.retain(|part| matches!(part, ImplItem::Type(_)));
    Item::Impl(block)
}

pub(crate) fn print(item: Item) -> String {
    prettyplease::unparse(&File { shebang: None, attrs: Vec::new(), items: vec![item] })
}
