//! The public API of both crates, as committed in `docs/api/`. A change becomes visible in review, not after
//! a release.
//!
//! `syn` reads the sources from `lib.rs` along `mod` and `pub use`. Every public item is written at the path
//! of its users, without bodies and documentation, and with private fields as `_private: _`. Its public
//! methods and its traits follow. Items made by macros are missing. `EVENKEEL_API=write cargo test -p
//! evenkeel --test it -- public_api::` rewrites the lists.

use crate::api_support::{
    anonymous_results, has, interface_paths, is_public, name_of, outline, outline_methods,
    outline_trait_impl, print, visibility,
};
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use syn::{Item, ItemImpl, Type, UseTree};

pub(crate) type Names = Vec<String>;

/// Result with a description of the error and its file.
pub(crate) type Outcome<T = ()> = Result<T, String>;

/// A module with its imported names: `name`, the path that it stands for, and whether it is re-exported.
#[derive(Default)]
pub(crate) struct Module {
    public: bool,
    items: Vec<Item>,
    uses: Vec<(String, Names, bool)>,
    globs: Vec<Names>,
}

/// All modules of a crate by their paths. The path of the crate root is empty.
#[derive(Default)]
pub(crate) struct Crate(BTreeMap<Names, Module>);

impl Crate {
    pub(crate) fn read(folder: &Path) -> Outcome<Crate> {
        let mut all = Crate::default();
        all.add(&folder.join("lib.rs"), folder, Vec::new(), true)?;
        Ok(all)
    }

    /// Reads a crate of one file.
    pub(crate) fn parse(text: &str) -> Outcome<Crate> {
        let mut all = Crate::default();
        let items = syn::parse_file(text).map_err(|err| err.to_string())?.items;
        all.enter(items, Path::new(""), Vec::new(), true)?;
        Ok(all)
    }

    fn add(&mut self, file: &Path, folder: &Path, path: Names, public: bool) -> Outcome {
        let text = std::fs::read_to_string(file).map_err(in_file(file))?;
        self.enter(syn::parse_file(&text).map_err(in_file(file))?.items, folder, path, public)
    }

    fn enter(&mut self, items: Vec<Item>, folder: &Path, path: Names, public: bool) -> Outcome {
        let mut module = Module { public, ..Module::default() };
        for item in items {
            match item {
                Item::Mod(inner) if !has(&inner.attrs, "cfg", "test") => {
                    let (name, public) = (inner.ident.to_string(), is_public(&inner.vis));
                    let below = [path.clone(), vec![name.clone()]].concat();
                    let folder = folder.join(&name);
                    match inner.content {
                        Some((_, items)) => self.enter(items, &folder, below, public)?,
                        None => self.add(&file_of(&folder), &folder, below, public)?,
                    }
                }
                Item::Mod(_) => {}
                Item::Use(item) => module.take(&item.tree, Vec::new(), is_public(&item.vis)),
                item => module.items.push(item),
            }
        }
        self.0.insert(path, module);
        Ok(())
    }

    /// Returns the definition of the item or module that a path in module `from` refers to; `None` for
    /// definitions of other crates.
    fn resolve(&self, from: &[String], path: &[String], depth: usize) -> Option<Names> {
        let (first, rest) = path.split_first()?;
        let mut at = match first.as_str() {
            "crate" => Vec::new(),
            "self" => from.to_vec(),
            "super" => from[..from.len().checked_sub(1)?].to_vec(),
            name => self.find(from, name, depth)?,
        };
        for name in rest {
            at = if name == "super" {
                at[..at.len().checked_sub(1)?].to_vec()
            } else {
                self.find(&at, name, depth)?
            };
        }
        Some(at)
    }

    fn find(&self, module: &[String], name: &str, depth: usize) -> Option<Names> {
        let below = [module, &[name.to_owned()]].concat();
        let inside = self.0.get(module)?;
        let mut defined = inside.items.iter().filter_map(name_of);
        if self.0.contains_key(&below) || defined.any(|ident| ident == name) {
            return Some(below);
        }
        let depth = depth.checked_sub(1)?;
        let mut brought =
            inside.uses.iter().filter(|(known, path, _)| known == name && path[..] != [name.to_owned()]);
        if let Some((_, path, _)) = brought.next() {
            return self.resolve(module, path, depth);
        }
        inside.globs.iter().find_map(|glob| self.find(&self.resolve(module, glob, depth)?, name, depth))
    }

    /// Collects the items that users find in the module `shown` and below: their definitions by the paths at
    /// which they are shown.
    fn show(
        &self,
        module: &[String],
        shown: &[String],
        found: &mut BTreeMap<Names, Names>,
        others: &mut BTreeSet<String>,
    ) {
        let Some(inside) = self.0.get(module) else { return };
        let at = |name: &str| [shown, &[name.to_owned()]].concat();
        let defined = |name: &str| [module, &[name.to_owned()]].concat();
        for item in inside.items.iter().filter(|item| visibility(item).is_some_and(is_public)) {
            let name = name_of(item).unwrap_or_default();
            found.insert(at(&name), defined(&name));
        }
        let below = |path: &Names| path.len() == module.len() + 1 && path.starts_with(module);
        for (path, _) in self.0.iter().filter(|(path, inner)| inner.public && below(path)) {
            self.show(path, &at(&path[module.len()]), found, others);
        }
        for (name, path, _) in inside.uses.iter().filter(|(.., public)| *public) {
            match self.resolve(module, path, 9) {
                Some(target) if self.0.contains_key(&target) => self.show(&target, &at(name), found, others),
                Some(target) => {
                    found.insert(at(name), target);
                }
                None => {
                    others.insert(format!("pub use {} as {};", path.join("::"), at(name).join("::")));
                }
            }
        }
    }

    fn item(&self, path: &[String]) -> Option<&Item> {
        let (name, module) = path.split_last()?;
        self.0.get(module)?.items.iter().find(|item| name_of(item).as_ref() == Some(name))
    }

    /// Returns implementations by the definition of their type.
    fn implementations(&self) -> BTreeMap<Names, Vec<(Names, &ItemImpl)>> {
        let mut all: BTreeMap<Names, Vec<(Names, &ItemImpl)>> = BTreeMap::new();
        for (module, inside) in &self.0 {
            for item in &inside.items {
                let Item::Impl(item) = item else { continue };
                let Type::Path(of) = &*item.self_ty else { continue };
                let path: Names = of.path.segments.iter().map(|segment| segment.ident.to_string()).collect();
                if let Some(target) = self.resolve(module, &path, 9) {
                    all.entry(target).or_default().push((module.clone(), item));
                }
            }
        }
        all
    }

    /// Returns the paths of all definitions of other crates in the public interface, as their imports name
    /// them.
    pub(crate) fn foreign_paths(&self) -> BTreeSet<String> {
        let (mut found, mut others) = (BTreeMap::new(), BTreeSet::new());
        self.show(&[], &[], &mut found, &mut others);
        let reexports =
            others.iter().filter_map(|other| other.strip_prefix("pub use ")?.split(" as ").next());
        let mut paths: BTreeSet<String> = reexports.map(str::to_owned).collect();
        for (_, module, item) in self.public_items() {
            let foreign = interface_paths(&item);
            let foreign = foreign.iter().filter_map(|path| self.foreign_path(&module, &names_of(path), 9));
            paths.extend(foreign.map(|path| path.join("::")));
        }
        paths
    }

    /// Returns the functions with anonymous results and the fields of anonymous types, by their users' paths.
    pub(crate) fn anonymous_results(&self) -> BTreeSet<String> {
        let of_item = |(shown, _, item): (Names, Names, Item)| {
            let path = if matches!(item, Item::Fn(_)) { &shown[..shown.len() - 1] } else { &shown[..] };
            let path = path.to_vec();
            anonymous_results(&item)
                .into_iter()
                .map(move |name| [path.clone(), vec![name]].concat().join("::"))
        };
        self.public_items().into_iter().flat_map(of_item).collect()
    }

    /// Returns outlines of all public items, of the methods of public types and of their traits. Each has its
    /// users' path and its module.
    fn public_items(&self) -> Vec<(Names, Names, Item)> {
        let (mut found, mut others) = (BTreeMap::new(), BTreeSet::new());
        self.show(&[], &[], &mut found, &mut others);
        let public: BTreeSet<&Names> = found.values().collect();
        let implementations = self.implementations();
        let mut items = Vec::new();
        for (shown, defined) in &found {
            let module = &defined[..defined.len() - 1];
            let own = self.item(defined).and_then(outline).map(|item| (module.to_vec(), item));
            let blocks = implementations.get(defined).into_iter().flatten().filter_map(|(module, block)| {
                let outlined = match &block.trait_ {
                    None => outline_methods(block),
                    Some((_, of, _)) => {
                        let local = self.resolve(module, &names_of(of), 9);
                        local.is_none_or(|of| public.contains(&of)).then(|| outline_trait_impl(block))
                    }
                };
                Some((module.clone(), outlined?))
            });
            items.extend(own.into_iter().chain(blocks).map(|(module, item)| (shown.clone(), module, item)));
        }
        items
    }

    /// Returns the full path of a definition of another crate that a path in module `from` refers to. `None`
    /// for definitions of this crate and of the prelude, and for generic parameters.
    fn foreign_path(&self, from: &[String], path: &[String], depth: usize) -> Option<Names> {
        let (first, mut rest) = path.split_first()?;
        let depth = depth.checked_sub(1)?;
        let below = [from, std::slice::from_ref(first)].concat();
        let mut module = match first.as_str() {
            "crate" => Vec::new(),
            "self" => from.to_vec(),
            "super" => from[..from.len().checked_sub(1)?].to_vec(),
            _ if !rest.is_empty() && self.0.contains_key(&below) => below,
            _ => {
                if self.resolve(from, path, 9).is_some() {
                    return None;
                }
                let inside = self.0.get(from)?;
                let imported = |(known, target, _): &&(String, Names, bool)| {
                    known == first && target[..] != [first.clone()]
                };
                if let Some((_, target, _)) = inside.uses.iter().find(imported) {
                    return self.foreign_path(from, &[target.as_slice(), rest].concat(), depth);
                }
                let globs = inside.globs.iter().filter_map(|glob| self.resolve(from, glob, 9));
                let through_glob = globs.filter(|glob| glob != from);
                if let Some(found) =
                    through_glob.into_iter().find_map(|glob| self.foreign_path(&glob, path, depth))
                {
                    return Some(found);
                }
                // Single names are of the prelude or generic. Associated types begin with a capital.
                let of_crate = path.len() > 1 && first.starts_with(char::is_lowercase);
                return of_crate.then(|| path.to_vec());
            }
        };
        while let [next, after @ ..] = rest {
            let below = [module.as_slice(), std::slice::from_ref(next)].concat();
            if after.is_empty() || !self.0.contains_key(&below) {
                break;
            }
            (module, rest) = (below, after);
        }
        self.foreign_path(&module, rest, depth)
    }

    fn list(&self, name: &str) -> String {
        let (mut found, mut others) = (BTreeMap::new(), BTreeSet::new());
        self.show(&[], &[name.to_owned()], &mut found, &mut others);
        let public: BTreeSet<&Names> = found.values().collect();
        let implementations = self.implementations();
        let mut text = format!("// The public API of {name}, written by tests/it/public_api.rs.\n");
        others.iter().for_each(|other| text += &format!("\n{other}\n"));
        for (shown, defined) in &found {
            let Some(item) = self.item(defined).and_then(outline) else { continue };
            let mut items = vec![item];
            let mut traits = Vec::new();
            for (module, block) in implementations.get(defined).into_iter().flatten() {
                if let Some((_, of, _)) = &block.trait_ {
                    let path: Names = of.segments.iter().map(|segment| segment.ident.to_string()).collect();
                    if self.resolve(module, &path, 9).is_none_or(|of| public.contains(&of)) {
                        traits.push(outline_trait_impl(block));
                    }
                } else {
                    items.extend(outline_methods(block));
                }
            }
            let mut traits: Vec<String> = traits.into_iter().map(print).collect();
            traits.sort();
            let rest: String = items.into_iter().map(print).collect();
            text += &format!("\n// {}\n{rest}{}", shown.join("::"), traits.concat());
        }
        text
    }
}

impl Module {
    fn take(&mut self, tree: &UseTree, mut path: Names, public: bool) {
        match tree {
            UseTree::Path(inner) => {
                path.push(inner.ident.to_string());
                self.take(&inner.tree, path, public);
            }
            UseTree::Group(group) => {
                for tree in &group.items {
                    self.take(tree, path.clone(), public);
                }
            }
            UseTree::Glob(_) => self.globs.push(path),
            UseTree::Name(name) => {
                if name.ident != "self" {
                    path.push(name.ident.to_string());
                }
                let known = path.last().cloned().unwrap_or_default();
                self.uses.push((known, path, public));
            }
            UseTree::Rename(name) => {
                path.push(name.ident.to_string());
                self.uses.push((name.rename.to_string(), path, public));
            }
        }
    }
}

fn names_of(path: &syn::Path) -> Names {
    path.segments.iter().map(|segment| segment.ident.to_string()).collect()
}

fn file_of(folder: &Path) -> PathBuf {
    let file = folder.with_extension("rs");
    if file.exists() { file } else { folder.join("mod.rs") }
}

fn in_file<E: std::fmt::Display>(file: &Path) -> impl Fn(E) -> String {
    move |err| format!("{}: {err}", file.display())
}

fn check(name: &str, folder: &str) -> Outcome {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let (file, listed) =
        (root.join(format!("docs/api/{name}.txt")), Crate::read(&root.join(folder))?.list(name));
    if std::env::var("EVENKEEL_API").is_ok_and(|value| value == "write") {
        return std::fs::write(&file, listed).map_err(in_file(&file));
    }
    let committed = std::fs::read_to_string(&file).unwrap_or_default();
    let (now, before): (BTreeSet<&str>, BTreeSet<&str>) =
        (listed.lines().collect(), committed.lines().collect());
    let mut changes = String::new();
    before.difference(&now).for_each(|line| changes += &format!("- {line}\n"));
    now.difference(&before).for_each(|line| changes += &format!("+ {line}\n"));
    assert!(
        listed == committed,
        "the public API of {name} is not what docs/api/{name}.txt says:\n{changes}If that is meant, see \"Versions\" in \
         CONTRIBUTING.md and write it anew: EVENKEEL_API=write cargo test -p evenkeel --test it -- public_api::"
    );
    Ok(())
}

#[test]
fn evenkeel() -> Outcome {
    check("evenkeel", "src")
}

#[test]
fn evenkeel_solver() -> Outcome {
    check("evenkeel_solver", "solver/src")
}
