//! The one macro behind every table of functions that is resolved at run time.

/// Makes a struct of function pointers and the function that fills it.
///
/// Required functions are fields, optional ones are `Option` fields. Called by the generated bindings only.
macro_rules! table {
    (
        $table:ident
        required { $($name:ident = $symbol:literal : fn($($arg:ident : $type:ty),*) -> $answer:ty;)* }
        optional { $($o_name:ident = $o_symbol:literal : fn($($o_arg:ident : $o_type:ty),*) -> $o_answer:ty;)* }
    ) => {
        pub struct $table {
            $(pub $name: unsafe extern "C" fn($($arg: $type),*) -> $answer,)*
            $(pub $o_name: Option<unsafe extern "C" fn($($o_arg: $o_type),*) -> $o_answer>,)*
        }

        impl $table {
            /// Symbols without which the library cannot be used.
            pub const REQUIRED: &'static [&'static str] = &[$($symbol),*];
            /// Symbols that only newer libraries have.
            pub const OPTIONAL: &'static [&'static str] = &[$($o_symbol),*];

            /// Fills the table, or answers every required symbol that `find` does not know.
            ///
            /// # Safety
            ///
            /// What `find` answers for a symbol is null or a C function of the declared type, for as long as the
            /// table and its copies are used.
            pub(crate) unsafe fn resolve(
                find: impl Fn(&'static str) -> *mut ::core::ffi::c_void,
            ) -> Result<Self, Vec<&'static str>> {
                let missing: Vec<&'static str> =
                    Self::REQUIRED.iter().copied().filter(|symbol| find(symbol).is_null()).collect();
                if !missing.is_empty() {
                    return Err(missing);
                }
                Ok(Self {
                    $($name: {
                        let function = find($symbol);
                        if function.is_null() {
                            return Err(vec![$symbol]);
                        }
                        // SAFETY: not null, and the caller promises the type.
                        unsafe {
                            ::core::mem::transmute::<
                                *mut ::core::ffi::c_void,
                                unsafe extern "C" fn($($type),*) -> $answer,
                            >(function)
                        }
                    },)*
                    $($o_name: {
                        // SAFETY: an optional function pointer may be null, and the caller promises the type.
                        unsafe {
                            ::core::mem::transmute::<
                                *mut ::core::ffi::c_void,
                                Option<unsafe extern "C" fn($($o_type),*) -> $o_answer>,
                            >(find($o_symbol))
                        }
                    },)*
                })
            }

            /// How many of the optional functions are there.
            pub fn optional_found(&self) -> usize {
                [$(self.$o_name.is_some()),*].iter().filter(|found: &&bool| **found).count()
            }
        }
    };
}
