//! Public items reduced to their interface: without bodies, documentation, values and private fields.

use syn::punctuated::Punctuated;
use syn::{
    Attribute, Fields, File, FnArg, GenericArgument, Generics, ImplItem, Item, ItemImpl, Path, PathArguments,
    ReturnType, Signature, Token, TraitItem, Type, TypeParamBound, Visibility, WherePredicate, parse_quote,
};

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

/// Returns the functions of an item whose results contain a tuple or an array, and its public fields that do.
/// Results need names at the call site.
pub(crate) fn anonymous_results(item: &Item) -> Vec<String> {
    let is_anonymous = |add: &dyn Fn(&mut PathList)| {
        let mut list = PathList::default();
        add(&mut list);
        list.has_anonymous
    };
    let returns = |sig: &Signature| is_anonymous(&|list| list.add_output(&sig.output));
    let mut found = Vec::new();
    match item {
        Item::Fn(item) if returns(&item.sig) => found.push(item.sig.ident.to_string()),
        Item::Impl(item) if item.trait_.is_none() => {
            for part in &item.items {
                if let ImplItem::Fn(part) = part
                    && returns(&part.sig)
                {
                    found.push(part.sig.ident.to_string());
                }
            }
        }
        Item::Trait(item) => {
            for part in &item.items {
                if let TraitItem::Fn(part) = part
                    && returns(&part.sig)
                {
                    found.push(part.sig.ident.to_string());
                }
            }
        }
        Item::Struct(item) => {
            for field in &item.fields {
                if let Some(name) = &field.ident
                    && is_anonymous(&|list| list.add_type(&field.ty))
                {
                    found.push(name.to_string());
                }
            }
        }
        _ => {}
    }
    found
}

/// Returns the paths of the types, traits and derived traits in the interface of an item.
pub(crate) fn interface_paths(item: &Item) -> Vec<Path> {
    let mut paths = PathList::default();
    paths.add_item(item);
    paths.found
}

/// Paths of an interface.
#[derive(Default)]
struct PathList {
    found: Vec<Path>,
    /// True if a tuple or an array was among the types.
    has_anonymous: bool,
}

impl PathList {
    fn add_item(&mut self, item: &Item) {
        match item {
            Item::Const(item) => self.add_type(&item.ty),
            Item::Static(item) => self.add_type(&item.ty),
            Item::Enum(item) => {
                self.add_derives(&item.attrs);
                self.add_generics(&item.generics);
                item.variants.iter().for_each(|variant| self.add_fields(&variant.fields));
            }
            Item::Struct(item) => {
                self.add_derives(&item.attrs);
                self.add_generics(&item.generics);
                self.add_fields(&item.fields);
            }
            Item::Type(item) => {
                self.add_generics(&item.generics);
                self.add_type(&item.ty);
            }
            Item::Fn(item) => self.add_signature(&item.sig),
            Item::Trait(item) => {
                self.add_generics(&item.generics);
                self.add_bounds(&item.supertraits);
                for part in &item.items {
                    match part {
                        TraitItem::Fn(part) => self.add_signature(&part.sig),
                        TraitItem::Const(part) => self.add_type(&part.ty),
                        TraitItem::Type(part) => self.add_bounds(&part.bounds),
                        _ => {}
                    }
                }
            }
            Item::Impl(item) => {
                self.add_generics(&item.generics);
                self.add_type(&item.self_ty);
                item.trait_.iter().for_each(|(_, path, _)| self.add_path(path));
                for part in &item.items {
                    match part {
                        ImplItem::Fn(part) => self.add_signature(&part.sig),
                        ImplItem::Const(part) => self.add_type(&part.ty),
                        ImplItem::Type(part) => self.add_type(&part.ty),
                        _ => {}
                    }
                }
            }
            _ => {}
        }
    }

    fn add_derives(&mut self, attributes: &[Attribute]) {
        for attribute in attributes.iter().filter(|attribute| attribute.path().is_ident("derive")) {
            let derived = attribute.parse_args_with(Punctuated::<Path, Token![,]>::parse_terminated);
            self.found.extend(derived.into_iter().flatten());
        }
    }

    fn add_fields(&mut self, fields: &Fields) {
        fields.iter().for_each(|field| self.add_type(&field.ty));
    }

    fn add_generics(&mut self, generics: &Generics) {
        generics.type_params().for_each(|parameter| self.add_bounds(&parameter.bounds));
        for predicate in generics.where_clause.iter().flat_map(|clause| &clause.predicates) {
            if let WherePredicate::Type(predicate) = predicate {
                self.add_type(&predicate.bounded_ty);
                self.add_bounds(&predicate.bounds);
            }
        }
    }

    fn add_signature(&mut self, signature: &Signature) {
        self.add_generics(&signature.generics);
        for input in &signature.inputs {
            if let FnArg::Typed(input) = input {
                self.add_type(&input.ty);
            }
        }
        self.add_output(&signature.output);
    }

    fn add_output(&mut self, output: &ReturnType) {
        if let ReturnType::Type(_, output) = output {
            self.add_type(output);
        }
    }

    fn add_bounds(&mut self, bounds: &Punctuated<TypeParamBound, Token![+]>) {
        for bound in bounds {
            if let TypeParamBound::Trait(bound) = bound {
                self.add_path(&bound.path);
            }
        }
    }

    fn add_type(&mut self, ty: &Type) {
        match ty {
            Type::Array(ty) => {
                self.has_anonymous = true;
                self.add_type(&ty.elem);
            }
            Type::Group(ty) => self.add_type(&ty.elem),
            Type::Paren(ty) => self.add_type(&ty.elem),
            Type::Ptr(ty) => self.add_type(&ty.elem),
            Type::Reference(ty) => self.add_type(&ty.elem),
            Type::Slice(ty) => self.add_type(&ty.elem),
            Type::Tuple(ty) => {
                self.has_anonymous |= ty.elems.len() > 1;
                ty.elems.iter().for_each(|ty| self.add_type(ty));
            }
            Type::ImplTrait(ty) => self.add_bounds(&ty.bounds),
            Type::TraitObject(ty) => self.add_bounds(&ty.bounds),
            Type::BareFn(ty) => {
                ty.inputs.iter().for_each(|input| self.add_type(&input.ty));
                self.add_output(&ty.output);
            }
            Type::Path(ty) => {
                ty.qself.iter().for_each(|of| self.add_type(&of.ty));
                self.add_path(&ty.path);
            }
            _ => {}
        }
    }

    /// Adds a path and those in its arguments.
    fn add_path(&mut self, path: &Path) {
        self.found.push(path.clone());
        for segment in &path.segments {
            match &segment.arguments {
                PathArguments::None => {}
                PathArguments::AngleBracketed(arguments) => {
                    for argument in &arguments.args {
                        match argument {
                            GenericArgument::Type(ty) => self.add_type(ty),
                            GenericArgument::AssocType(assigned) => self.add_type(&assigned.ty),
                            GenericArgument::Constraint(constraint) => self.add_bounds(&constraint.bounds),
                            _ => {}
                        }
                    }
                }
                PathArguments::Parenthesized(arguments) => {
                    arguments.inputs.iter().for_each(|input| self.add_type(input));
                    self.add_output(&arguments.output);
                }
            }
        }
    }
}
