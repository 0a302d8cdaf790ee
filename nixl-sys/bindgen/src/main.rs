//! Writes `nixl-sys`'s bindings from its C headers: `nixl-sys-bindgen HEADER_FOLDER OUTPUT_FOLDER`.
//!
//! Run by `scripts/bindings`; the output is checked in and compared by `scripts/bindings-check`. bindgen's types and
//! layout asserts are taken as they are. Its functions become a call of the crate's own macro `table!`, because they
//! are resolved at run time: nothing of NIXL or UCX is linked. Comments of the headers are left out, since clang
//! versions differ in how they hand them over.

use std::{env, error::Error, fs, path::Path, path::PathBuf};

use quote::ToTokens;

/// Functions that only NIXL 1.5 and newer have.
const SINCE_1_5: [&str; 8] = [
    "nixl_capi_create_remote_dlist",
    "nixl_capi_destroy_remote_dlist",
    "nixl_capi_opt_args_get_custom_param",
    "nixl_capi_opt_args_set_custom_param",
    "nixl_capi_prep_mem_view_local",
    "nixl_capi_prep_mem_view_remote",
    "nixl_capi_release_mem_view",
    "nixl_capi_remote_dlist_add_desc",
];

/// One header, and what becomes of it.
struct Job {
    header: &'static str,
    output: &'static str,
    table: &'static str,
    /// What is bound, as a regular expression of bindgen.
    allow: &'static str,
    /// Left out of the field names.
    prefix: &'static str,
    optional: &'static [&'static str],
}

const JOBS: [Job; 2] = [
    Job {
        header: "nixl_capi.h",
        output: "bindings.rs",
        table: "Functions",
        allow: "nixl_capi_.*",
        prefix: "nixl_capi_",
        optional: &SINCE_1_5,
    },
    Job {
        header: "ucx.h",
        output: "ucx/bindings.rs",
        table: "UcxFunctions",
        allow: "uc[pst]_.*",
        prefix: "",
        optional: &[],
    },
];

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = env::args_os().skip(1).map(PathBuf::from);
    let (Some(headers), Some(output), None) = (arguments.next(), arguments.next(), arguments.next()) else {
        return Err("usage: nixl-sys-bindgen HEADER_FOLDER OUTPUT_FOLDER".into());
    };
    for job in &JOBS {
        let raw = bind(&headers.join(job.header), job.allow)?;
        let file = output.join(job.output);
        if let Some(folder) = file.parent() {
            fs::create_dir_all(folder)?;
        }
        fs::write(file, rewrite(&raw, job)?)?;
    }
    Ok(())
}

fn bind(header: &Path, allow: &str) -> Result<String, Box<dyn Error>> {
    let header = header.to_str().ok_or("the header's path is not UTF-8")?;
    let bindings = bindgen::builder()
        .header(header)
        .clang_arg("-std=c11")
        .allowlist_type(allow)
        .allowlist_function(allow)
        .default_enum_style(bindgen::EnumVariation::NewType { is_bitfield: false, is_global: false })
        .prepend_enum_name(false)
        .must_use_type("nixl_capi_status_t")
        .derive_default(false)
        .generate_comments(false)
        .layout_tests(true)
        .merge_extern_blocks(true)
        .sort_semantically(true)
        .use_core()
        .rust_target(bindgen::RustTarget::stable(90, 0).map_err(|e| e.to_string())?)
        .rust_edition(bindgen::RustEdition::Edition2024)
        .disable_header_comment()
        .formatter(bindgen::Formatter::None)
        .generate()?;
    Ok(bindings.to_string())
}

/// Turns the extern block into the table and formats the rest.
fn rewrite(raw: &str, job: &Job) -> Result<String, Box<dyn Error>> {
    let mut file = syn::parse_file(raw)?;
    let mut functions = Vec::new();
    file.items.retain(|item| match item {
        syn::Item::ForeignMod(block) => {
            for item in &block.items {
                if let syn::ForeignItem::Fn(function) = item {
                    functions.push(function.sig.clone());
                }
            }
            false
        }
        _ => true,
    });
    functions.sort_by_key(|signature| signature.ident.to_string());

    let mut text = format!("// Generated from include/{} by scripts/bindings; do not edit.\n\n", job.header);
    text += &prettyplease::unparse(&file);
    text += &format!("table! {{\n    {}\n", job.table);
    for (part, is_optional) in [("required", false), ("optional", true)] {
        text += &format!("    {part} {{\n");
        for signature in &functions {
            if job.optional.contains(&signature.ident.to_string().as_str()) == is_optional {
                text += &entry(signature, job.prefix)?;
            }
        }
        text += "    }\n";
    }
    text += "}\n";
    Ok(text)
}

/// One line of the table: `field = "symbol": fn(name: type, …) -> type;`
fn entry(signature: &syn::Signature, prefix: &str) -> Result<String, Box<dyn Error>> {
    let symbol = signature.ident.to_string();
    let field = symbol.strip_prefix(prefix).ok_or_else(|| format!("{symbol} does not start with {prefix}"))?;
    let mut arguments = Vec::new();
    for argument in &signature.inputs {
        let syn::FnArg::Typed(argument) = argument else { return Err(format!("{symbol} takes self").into()) };
        arguments.push(format!("{}: {}", compact(&argument.pat), compact(&argument.ty)));
    }
    let answer = match &signature.output {
        syn::ReturnType::Default => "()".to_owned(),
        syn::ReturnType::Type(_, answer) => compact(answer),
    };
    Ok(format!("        {field} = {symbol:?}: fn({}) -> {answer};\n", arguments.join(", ")))
}

/// Tokens as people write them.
fn compact(tokens: &impl ToTokens) -> String {
    let spaced = tokens.to_token_stream().to_string();
    spaced
        .replace(" :: ", "::")
        .replace(":: ", "::")
        .replace("* ", "*")
        .replace("const::", "const ::")
        .replace("mut::", "mut ::")
}
