//! The kernels' source and what each kernel takes.

/// A kernel of a source: its C name and how many arguments it takes, each of eight bytes (an address or a count).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Function {
    /// The name that the module knows it by.
    pub name: &'static str,
    /// How many arguments.
    pub arguments: usize,
}

/// A file of kernels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Source {
    /// The file's name.
    pub name: &'static str,
    /// Its text, without the header.
    pub text: &'static str,
    /// Its kernels.
    pub functions: &'static [Function],
}

/// The words that kernels are written in, for a GPU.
const HEADER: &str = include_str!("kernels/on_device.h");

/// Threads of a block in every launch; the kernels rely on it.
pub const THREADS: u32 = 256;

/// The most elements that a block of a tensor has: each block gives one value of a slot table.
pub const LARGEST_BLOCK: usize = 65_536;

impl Source {
    /// What the compiler gets.
    pub fn whole(&self) -> String {
        format!("{HEADER}\n#line 1 \"{}\"\n{}", self.name, self.text)
    }
}

/// out = left + right, float32 or bf16 on the right.
pub const TREE_ADD: Source = Source {
    name: "tree_add.cu",
    text: include_str!("kernels/tree_add.cu"),
    functions: &[
        Function {
            name: "tree_add",
            arguments: 4,
        },
        Function {
            name: "tree_add_bf16",
            arguments: 4,
        },
    ],
};

/// Sums of squares and of products, a value a block.
pub const BLOCK_SUMS: Source = Source {
    name: "block_sums.cu",
    text: include_str!("kernels/block_sums.cu"),
    functions: &[
        Function {
            name: "block_square_sums",
            arguments: 4,
        },
        Function {
            name: "block_dots",
            arguments: 4,
        },
    ],
};

/// Hashes, a value a block.
pub const BLOCK_HASH: Source = Source {
    name: "block_hash.cu",
    text: include_str!("kernels/block_hash.cu"),
    functions: &[Function {
        name: "block_hashes",
        arguments: 3,
    }],
};

/// Rounding to bf16.
pub const ROUND_TO_BF16: Source = Source {
    name: "round_to_bf16.cu",
    text: include_str!("kernels/round_to_bf16.cu"),
    functions: &[Function {
        name: "round_to_bf16",
        arguments: 3,
    }],
};

/// All of them.
pub const SOURCES: [Source; 4] = [TREE_ADD, BLOCK_SUMS, BLOCK_HASH, ROUND_TO_BF16];
