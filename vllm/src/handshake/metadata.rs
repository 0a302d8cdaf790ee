//! `NixlAgentMetadata`: what one worker tells about its agent and its cache (protocol doc §1.4).

use bytes::Bytes;
use kv::ids::EngineId;
use kv::layout::{KvLayout, LayoutError, MemoryKind, RegionGroup, RegionLayout};
use rmpv::{Value, ValueRef};

use super::HandshakeError;
use crate::msgpack::{self, Map, binary, integer, list, nullable, string};
use crate::versions::Version;

/// The most regions of one worker's cache that we take; a model has one per attention layer.
pub const MAX_REGIONS: usize = 4096;

const WHAT: &str = "agent metadata";
const INTEGERS: &str = "a list of integers in range";
/// The back end of vLLM's CPU platform; its cache is host memory.
const CPU_BACKEND: &str = "CPU_ATTN";
const INTEGER: &str = "an integer in range";

/// The 21 fields of the newest release, in encoded order; an older one's are fewer, and what it lacks has its default here.
/// Lists have one entry per region.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AgentMetadata {
    /// Whose metadata this is; must equal the `remote_engine_id` that led here.
    pub engine_id: EngineId,
    /// NIXL's own blob, opaque.
    pub agent_metadata: Bytes,
    /// Virtual address of each region.
    pub kv_caches_base_addr: Vec<u64>,
    /// NIXL's device id of every region: 0 in DRAM, else the GPU's index.
    pub device_id: u64,
    /// Kernel blocks of the cache.
    pub num_blocks: u32,
    /// Bytes of one kernel block.
    pub block_lens: Vec<u64>,
    /// Bytes between consecutive kernel blocks.
    pub block_strides: Vec<u64>,
    /// Layout word, e.g. `LBHNC`.
    pub kv_cache_layout: String,
    /// Tokens per kernel block.
    pub block_size: u32,
    /// Mamba's (conv, ssm) bytes; (0, 0) without.
    pub ssm_sizes: (u64, u64),
    /// Attention back end, e.g. `CPU_ATTN`.
    pub attn_backend_name: String,
    /// Kernel blocks per logical block.
    pub physical_blocks_per_logical_kv_block: u32,
    /// Kernel blocks of each region.
    pub region_num_blocks: Option<Vec<u32>>,
    /// KV-cache group of each region; -1 is shared.
    pub region_group_ids: Option<Vec<i32>>,
    /// First layer of each region.
    pub region_names: Option<Vec<String>>,
    /// `DRAM` or `VRAM` for each region.
    pub region_mem_types: Option<Vec<String>>,
    /// Decode context parallel size.
    pub dcp_size: u32,
    /// Prefill context parallel size.
    pub pcp_size: u32,
    /// Per-layer-embedding block bytes, of one special model.
    pub ple_block_len: Option<u64>,
    /// Members of each region; push mode only.
    pub region_members: Vec<Vec<String>>,
    /// Layouts of packed members; push mode only.
    pub packed_member_layouts: Vec<(String, (u64, u64))>,
}

/// Why a cache is refused, in words for an operator.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum UnsupportedLayout {
    /// State-space layers.
    #[error("the model has Mamba (state-space) layers, which kvgate does not support")]
    StateSpace,
    /// Context parallelism.
    #[error("{what} is {size}; kvgate supports no context parallelism")]
    ContextParallel {
        /// Which of the two sizes.
        what: &'static str,
        /// Its value.
        size: u32,
    },
    /// Per-layer embeddings.
    #[error("the model has per-layer-embedding blocks, which kvgate does not support")]
    PerLayerEmbedding,
    /// Packed regions of push mode.
    #[error("the cache has packed regions of push mode, which kvgate does not support")]
    Packed,
    /// Several kinds of memory, or an unknown one.
    #[error("region memory types are {0:?}; kvgate supports all DRAM or all VRAM")]
    Memory(Vec<String>),
    /// No kind of memory is told, and the back end may keep its cache on a GPU.
    #[error(
        "the engine does not say in what memory its cache lies (region_mem_types, told from connector version 11 on) and \
         {backend} is no CPU back end: it would take kvgate's staging, which is host memory, for memory of its own kind"
    )]
    MemoryUntold {
        /// The attention back end.
        backend: String,
    },
    /// A list of another length than the others.
    #[error("{field} has {found} entries for {regions} regions")]
    ListLength {
        /// Which.
        field: &'static str,
        /// Its length.
        found: usize,
        /// The number of regions.
        regions: usize,
    },
    /// A group index that is neither -1 nor small.
    #[error("region {region}: KV-cache group {group} is out of range")]
    Group {
        /// Index of the region.
        region: usize,
        /// What it says.
        group: i32,
    },
    /// Sizes that make no sense.
    #[error("the cache's geometry is not usable")]
    Geometry(#[from] LayoutError),
}

impl AgentMetadata {
    /// The bytes that a release writes: its keys, in its order. What it has no key for is left out.
    pub fn encode(&self, version: &Version) -> Bytes {
        fn ints<T: Copy + Into<Value>>(list: &[T]) -> Value {
            Value::Array(list.iter().map(|number| (*number).into()).collect())
        }
        fn texts(list: &[String]) -> Value {
            Value::Array(list.iter().map(|text| text.as_str().into()).collect())
        }
        fn pair((first, second): (u64, u64)) -> Value {
            ints(&[first, second])
        }
        fn or_nil<T>(list: Option<&T>, convert: impl Fn(&T) -> Value) -> Value {
            list.map_or(Value::Nil, convert)
        }
        let layouts = self.packed_member_layouts.iter();
        let fields: [(&str, Value); 21] = [
            ("engine_id", self.engine_id.as_str().into()),
            ("agent_metadata", Value::Binary(self.agent_metadata.to_vec())),
            ("kv_caches_base_addr", ints(&self.kv_caches_base_addr)),
            ("device_id", self.device_id.into()),
            ("num_blocks", self.num_blocks.into()),
            ("block_lens", ints(&self.block_lens)),
            ("block_strides", ints(&self.block_strides)),
            ("kv_cache_layout", self.kv_cache_layout.as_str().into()),
            ("block_size", self.block_size.into()),
            ("ssm_sizes", pair(self.ssm_sizes)),
            ("attn_backend_name", self.attn_backend_name.as_str().into()),
            ("physical_blocks_per_logical_kv_block", self.physical_blocks_per_logical_kv_block.into()),
            ("region_num_blocks", or_nil(self.region_num_blocks.as_ref(), |list| ints(list))),
            ("region_group_ids", or_nil(self.region_group_ids.as_ref(), |list| ints(list))),
            ("region_names", or_nil(self.region_names.as_ref(), |list| texts(list))),
            ("region_mem_types", or_nil(self.region_mem_types.as_ref(), |list| texts(list))),
            ("dcp_size", self.dcp_size.into()),
            ("pcp_size", self.pcp_size.into()),
            ("ple_block_len", self.ple_block_len.map_or(Value::Nil, Value::from)),
            ("region_members", Value::Array(self.region_members.iter().map(|list| texts(list)).collect())),
            (
                "packed_member_layouts",
                Value::Map(layouts.map(|(name, sizes)| (name.as_str().into(), pair(*sizes))).collect()),
            ),
        ];
        let known = fields.into_iter().filter(|(key, _)| version.has_field(key));
        let map = known.map(|(key, value)| (key.into(), value)).collect();
        msgpack::write(&Value::Map(map)).into()
    }

    /// Reads what a worker of any supported release sent: order free, unknown keys ignored, optional ones may be absent.
    ///
    /// # Errors
    /// [`HandshakeError`] that names the field.
    pub fn decode(bytes: &[u8]) -> Result<Self, HandshakeError> {
        let map = Map::read(WHAT, bytes)?;
        let texts = |value: &ValueRef<'_>| list(value, MAX_REGIONS, string);
        let addresses = |value: &ValueRef<'_>| list(value, MAX_REGIONS, integer);
        let pair = |value: &ValueRef<'_>| match list(value, 2, integer)?.as_slice() {
            [first, second] => Some((*first, *second)),
            _ => None,
        };
        let layouts = |value: &ValueRef<'_>| {
            let ValueRef::Map(entries) = value else { return None };
            let entry = |(name, sizes): &(ValueRef<'_>, ValueRef<'_>)| Some((string(name)?, pair(sizes)?));
            if entries.len() > MAX_REGIONS { None } else { entries.iter().map(entry).collect() }
        };
        let engine_id = |value: &ValueRef<'_>| string(value).filter(|id| !id.is_empty()).map(EngineId::new);
        Ok(Self {
            engine_id: map.required("engine_id", "a non-empty string", engine_id)?,
            agent_metadata: map.required("agent_metadata", "binary", binary)?,
            kv_caches_base_addr: map.required("kv_caches_base_addr", INTEGERS, addresses)?,
            device_id: map.required("device_id", INTEGER, integer)?,
            num_blocks: map.required("num_blocks", INTEGER, integer)?,
            block_lens: map.required("block_lens", INTEGERS, addresses)?,
            block_strides: map.required("block_strides", INTEGERS, addresses)?,
            kv_cache_layout: map.required("kv_cache_layout", "a string", string)?,
            block_size: map.required("block_size", INTEGER, integer)?,
            ssm_sizes: map.required("ssm_sizes", "two integers", pair)?,
            attn_backend_name: map.required("attn_backend_name", "a string", string)?,
            physical_blocks_per_logical_kv_block: map.required(
                "physical_blocks_per_logical_kv_block",
                INTEGER,
                integer,
            )?,
            region_num_blocks: map.or("region_num_blocks", INTEGERS, None, |value| {
                nullable(value, |value| list(value, MAX_REGIONS, integer))
            })?,
            region_group_ids: map.or("region_group_ids", INTEGERS, None, |value| {
                nullable(value, |value| list(value, MAX_REGIONS, integer))
            })?,
            region_names: map.or("region_names", "a list of strings", None, |value| nullable(value, texts))?,
            region_mem_types: map.or("region_mem_types", "a list of strings", None, |value| nullable(value, texts))?,
            dcp_size: map.or("dcp_size", INTEGER, 1, integer)?,
            pcp_size: map.or("pcp_size", INTEGER, 1, integer)?,
            ple_block_len: map.or("ple_block_len", INTEGER, None, |value| nullable(value, integer))?,
            region_members: map.or("region_members", "a list of lists of strings", Vec::new(), |value| {
                list(value, MAX_REGIONS, texts)
            })?,
            packed_member_layouts: map.or("packed_member_layouts", "a map of pairs", Vec::new(), layouts)?,
        })
    }

    /// The cache's geometry, if it is one that kvgate can copy.
    ///
    /// # Errors
    /// [`UnsupportedLayout`].
    pub fn layout(&self) -> Result<KvLayout, UnsupportedLayout> {
        if self.ssm_sizes != (0, 0) {
            return Err(UnsupportedLayout::StateSpace);
        }
        for (what, size) in [("dcp_size", self.dcp_size), ("pcp_size", self.pcp_size)] {
            if size != 1 {
                return Err(UnsupportedLayout::ContextParallel { what, size });
            }
        }
        if self.ple_block_len.is_some() {
            return Err(UnsupportedLayout::PerLayerEmbedding);
        }
        if !self.packed_member_layouts.is_empty() || self.region_members.iter().any(|members| members.len() > 1) {
            return Err(UnsupportedLayout::Packed);
        }
        let memory = self.memory()?;
        let layout = KvLayout {
            regions: self.regions()?,
            kernel_per_logical: self.physical_blocks_per_logical_kv_block,
            kernel_block_tokens: self.block_size,
            layout: self.kv_cache_layout.clone(),
            backend: self.attn_backend_name.clone(),
            memory,
            device: self.device_id,
        };
        Ok(layout.checked()?)
    }

    fn memory(&self) -> Result<MemoryKind, UnsupportedLayout> {
        let Some(types) = self.region_mem_types.as_deref() else {
            // A reader then takes every remote region for its own kind of memory. Only a CPU engine's kind is certain.
            let backend = &self.attn_backend_name;
            let untold = UnsupportedLayout::MemoryUntold { backend: backend.clone() };
            return if backend == CPU_BACKEND { Ok(MemoryKind::Dram) } else { Err(untold) };
        };
        let all = |kind: &str| !types.is_empty() && types.iter().all(|found| found == kind);
        if all("DRAM") {
            Ok(MemoryKind::Dram)
        } else if all("VRAM") {
            Ok(MemoryKind::Vram)
        } else {
            let mut distinct = types.to_vec();
            distinct.sort();
            distinct.dedup();
            Err(UnsupportedLayout::Memory(distinct))
        }
    }

    fn regions(&self) -> Result<Vec<RegionLayout>, UnsupportedLayout> {
        let regions = self.kv_caches_base_addr.len();
        let check = |field, found| {
            if found == regions { Ok(()) } else { Err(UnsupportedLayout::ListLength { field, found, regions }) }
        };
        check("block_lens", self.block_lens.len())?;
        check("block_strides", self.block_strides.len())?;
        for (field, len) in [
            ("region_num_blocks", self.region_num_blocks.as_ref().map(Vec::len)),
            ("region_group_ids", self.region_group_ids.as_ref().map(Vec::len)),
            ("region_names", self.region_names.as_ref().map(Vec::len)),
            ("region_mem_types", self.region_mem_types.as_ref().map(Vec::len)),
        ] {
            check(field, len.unwrap_or(regions))?;
        }
        let sizes = self.kv_caches_base_addr.iter().zip(self.block_lens.iter().zip(&self.block_strides));
        let region = |(region, (base, (block_len, block_stride))): (usize, (&u64, (&u64, &u64)))| {
            let group = self.region_group_ids.as_ref().and_then(|ids| ids.get(region)).copied().unwrap_or(0);
            let name = self.region_names.as_ref().and_then(|names| names.get(region)).cloned().unwrap_or_default();
            let blocks = self.region_num_blocks.as_ref().and_then(|blocks| blocks.get(region)).copied();
            let group = match u16::try_from(group) {
                Ok(group) => RegionGroup::One(group),
                Err(_) if group == -1 => RegionGroup::Shared,
                Err(_) => return Err(UnsupportedLayout::Group { region, group }),
            };
            let (base, block_len, block_stride) = (*base, *block_len, *block_stride);
            let num_blocks = blocks.unwrap_or(self.num_blocks);
            Ok(RegionLayout { name, base, block_len, block_stride, num_blocks, group })
        };
        sizes.enumerate().map(region).collect()
    }
}
