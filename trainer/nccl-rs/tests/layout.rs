//! The binding against the header: every size, offset and value that `layout/layout.c` printed with nccl.h of 2.29.7.
//! `cargo xtask check-gpu` prints them anew from the real header. The functions in it are compared in `src/api.rs`.

use std::collections::BTreeMap;
use std::mem::offset_of;

use nccl_rs::{BlockPolicy, Code, DataType, MemoryStatistic, Reduction, raw};

const GOLDEN: &str = include_str!("layout/layout-2.29.7.txt");

/// What the binding believes, in the words of the golden text.
fn believed() -> BTreeMap<String, i64> {
    let mut facts = BTreeMap::new();
    let mut fact = |name: &str, value: i64| {
        assert!(facts.insert(name.to_owned(), value).is_none(), "{name} stands twice");
    };

    fact("value NCCL_VERSION_CODE", raw::VERSION_CODE.into());
    fact("value NCCL_UNIQUE_ID_BYTES", raw::UNIQUE_ID_BYTES as i64);
    fact("value NCCL_API_MAGIC", raw::API_MAGIC.into());
    fact("value NCCL_CONFIG_UNDEF_INT", raw::UNDEFINED.into());
    fact("value NCCL_SPLIT_NOCOLOR", raw::NO_COLOUR.into());
    fact("value NCCL_CTA_POLICY_DEFAULT", BlockPolicy::Default as i64);
    fact("value NCCL_CTA_POLICY_EFFICIENCY", BlockPolicy::Efficiency as i64);
    fact("value NCCL_CTA_POLICY_ZERO", BlockPolicy::Zero as i64);

    macro_rules! size {
        ($($c:literal = $rust:ty),* $(,)?) => {$(
            fact(concat!("size ", $c), size_of::<$rust>() as i64);
            fact(concat!("align ", $c), align_of::<$rust>() as i64);
        )*};
    }
    size! {
        "ncclComm_t" = raw::CommHandle,
        "ncclUniqueId" = raw::UniqueId,
        "ncclConfig_t" = raw::Config,
        "ncclResult_t" = raw::ResultCode,
        "ncclDataType_t" = DataType,
        "ncclRedOp_t" = Reduction,
        "ncclCommMemStat_t" = MemoryStatistic,
        "cudaStream_t" = raw::StreamHandle,
    }

    macro_rules! offsets {
        ($c:literal, $rust:ty: $($field:ident),* $(,)?) => {$(
            fact(concat!("offset ", $c, ".", stringify!($field)), offset_of!($rust, $field) as i64);
        )*};
    }
    offsets! { "ncclUniqueId", raw::UniqueId: internal }
    offsets! {
        "ncclConfig_t", raw::Config:
        size, magic, version, blocking, cgaClusterSize, minCTAs, maxCTAs, netName, splitShare, trafficClass, commName,
        collnetEnable, CTAPolicy, shrinkShare, nvlsCTAs, nChannelsPerNetPeer, nvlinkCentricSched, graphUsageMode,
        numRmaCtx,
    }

    let unset = raw::Config::unset();
    fact("value unset.size", unset.size as i64);
    fact("value unset.magic", unset.magic.into());
    fact("value unset.version", unset.version.into());
    fact("value unset.blocking", unset.blocking.into());
    fact("value unset.netName == NULL", unset.netName.is_null().into());
    fact("value unset.commName == NULL", unset.commName.is_null().into());
    fact("value unset.numRmaCtx", unset.numRmaCtx.into());

    fact("value ncclSuccess", raw::SUCCESS.into());
    fact("value ncclUnhandledCudaError", Code::UnhandledCuda.number().into());
    fact("value ncclSystemError", Code::System.number().into());
    fact("value ncclInternalError", Code::Internal.number().into());
    fact("value ncclInvalidArgument", Code::InvalidArgument.number().into());
    fact("value ncclInvalidUsage", Code::InvalidUsage.number().into());
    fact("value ncclRemoteError", Code::Remote.number().into());
    fact("value ncclInProgress", raw::IN_PROGRESS.into());
    fact("value ncclNumResults", i64::from(raw::IN_PROGRESS) + 1);

    fact("value ncclInt8", DataType::Int8 as i64);
    fact("value ncclUint8", DataType::Uint8 as i64);
    fact("value ncclInt32", DataType::Int32 as i64);
    fact("value ncclUint32", DataType::Uint32 as i64);
    fact("value ncclInt64", DataType::Int64 as i64);
    fact("value ncclUint64", DataType::Uint64 as i64);
    fact("value ncclFloat16", DataType::Float16 as i64);
    fact("value ncclFloat32", DataType::Float32 as i64);
    fact("value ncclFloat64", DataType::Float64 as i64);
    fact("value ncclBfloat16", DataType::Bfloat16 as i64);
    fact("value ncclFloat8e4m3", DataType::Float8E4M3 as i64);
    fact("value ncclFloat8e5m2", DataType::Float8E5M2 as i64);
    fact("value ncclNumTypes", DataType::ALL.len() as i64);

    fact("value ncclSum", Reduction::Sum as i64);
    fact("value ncclProd", Reduction::Product as i64);
    fact("value ncclMax", Reduction::Max as i64);
    fact("value ncclMin", Reduction::Min as i64);
    fact("value ncclAvg", Reduction::Average as i64);

    fact("value ncclStatGpuMemSuspend", MemoryStatistic::Suspendable as i64);
    fact("value ncclStatGpuMemSuspended", MemoryStatistic::Suspended as i64);
    fact("value ncclStatGpuMemPersist", MemoryStatistic::Persistent as i64);
    fact("value ncclStatGpuMemTotal", MemoryStatistic::Total as i64);
    facts
}

#[test]
fn the_binding_and_the_header_agree_in_every_size_offset_and_value() {
    let facts = || GOLDEN.lines().filter(|line| !line.starts_with("function "));
    let golden: BTreeMap<String, i64> = facts()
        .map(|line| {
            let (name, value) = line.rsplit_once(' ').expect("each line has a name and a number");
            (name.to_owned(), value.parse().expect("the last word is a number"))
        })
        .collect();
    assert_eq!(golden.len(), facts().count(), "the golden text names something twice");
    assert_eq!(believed(), golden);
}

#[test]
fn numbers_of_types_and_reductions_come_back() {
    for kind in DataType::ALL {
        assert_eq!(DataType::from_number(kind as i32), Some(kind));
    }
    for reduction in Reduction::ALL {
        assert_eq!(Reduction::from_number(reduction as i32), Some(reduction));
    }
    assert_eq!(Reduction::from_number(5), None);
}
