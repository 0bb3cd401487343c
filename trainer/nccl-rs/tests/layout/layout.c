/* Prints what a binding must know of nccl.h: sizes, alignments, offsets and the values of its names, one fact a line.
 * Functions are printed with 1 where the header declares them with just these arguments.
 * The golden text beside this file is what it prints with the header of NCCL 2.29.7. */
#include <nccl.h>
#include <stddef.h>
#include <stdio.h>

#define SIZE(type) printf("size %s %zu\n", #type, sizeof(type)), printf("align %s %zu\n", #type, _Alignof(type))
#define OFFSET(type, field) printf("offset %s.%s %zu\n", #type, #field, offsetof(type, field))
#define VALUE(name) printf("value %s %lld\n", #name, (long long)(name))
#define DECLARED(answer, name, ...) \
  printf("function %s(%s) %d\n", #name, #__VA_ARGS__, _Generic(&name, answer (*)(__VA_ARGS__): 1, default: 0))
#define FUNCTION(name, ...) DECLARED(ncclResult_t, name, __VA_ARGS__)
#define TEXT(name, ...) DECLARED(const char *, name, __VA_ARGS__)

int main(void) {
  ncclConfig_t unset = NCCL_CONFIG_INITIALIZER;

  VALUE(NCCL_VERSION_CODE);
  VALUE(NCCL_UNIQUE_ID_BYTES);
  VALUE(NCCL_API_MAGIC);
  VALUE(NCCL_CONFIG_UNDEF_INT);
  VALUE(NCCL_SPLIT_NOCOLOR);
  VALUE(NCCL_CTA_POLICY_DEFAULT);
  VALUE(NCCL_CTA_POLICY_EFFICIENCY);
  VALUE(NCCL_CTA_POLICY_ZERO);

  SIZE(ncclComm_t);
  SIZE(ncclUniqueId);
  SIZE(ncclConfig_t);
  SIZE(ncclResult_t);
  SIZE(ncclDataType_t);
  SIZE(ncclRedOp_t);
  SIZE(ncclCommMemStat_t);
  SIZE(cudaStream_t);

  OFFSET(ncclUniqueId, internal);
  OFFSET(ncclConfig_t, size);
  OFFSET(ncclConfig_t, magic);
  OFFSET(ncclConfig_t, version);
  OFFSET(ncclConfig_t, blocking);
  OFFSET(ncclConfig_t, cgaClusterSize);
  OFFSET(ncclConfig_t, minCTAs);
  OFFSET(ncclConfig_t, maxCTAs);
  OFFSET(ncclConfig_t, netName);
  OFFSET(ncclConfig_t, splitShare);
  OFFSET(ncclConfig_t, trafficClass);
  OFFSET(ncclConfig_t, commName);
  OFFSET(ncclConfig_t, collnetEnable);
  OFFSET(ncclConfig_t, CTAPolicy);
  OFFSET(ncclConfig_t, shrinkShare);
  OFFSET(ncclConfig_t, nvlsCTAs);
  OFFSET(ncclConfig_t, nChannelsPerNetPeer);
  OFFSET(ncclConfig_t, nvlinkCentricSched);
  OFFSET(ncclConfig_t, graphUsageMode);
  OFFSET(ncclConfig_t, numRmaCtx);

  /* What the header's initializer leaves in a fresh configuration. */
  VALUE(unset.size);
  VALUE(unset.magic);
  VALUE(unset.version);
  VALUE(unset.blocking);
  VALUE(unset.netName == NULL);
  VALUE(unset.commName == NULL);
  VALUE(unset.numRmaCtx);

  VALUE(ncclSuccess);
  VALUE(ncclUnhandledCudaError);
  VALUE(ncclSystemError);
  VALUE(ncclInternalError);
  VALUE(ncclInvalidArgument);
  VALUE(ncclInvalidUsage);
  VALUE(ncclRemoteError);
  VALUE(ncclInProgress);
  VALUE(ncclNumResults);

  VALUE(ncclInt8);
  VALUE(ncclUint8);
  VALUE(ncclInt32);
  VALUE(ncclUint32);
  VALUE(ncclInt64);
  VALUE(ncclUint64);
  VALUE(ncclFloat16);
  VALUE(ncclFloat32);
  VALUE(ncclFloat64);
  VALUE(ncclBfloat16);
  VALUE(ncclFloat8e4m3);
  VALUE(ncclFloat8e5m2);
  VALUE(ncclNumTypes);

  VALUE(ncclSum);
  VALUE(ncclProd);
  VALUE(ncclMax);
  VALUE(ncclMin);
  VALUE(ncclAvg);

  VALUE(ncclStatGpuMemSuspend);
  VALUE(ncclStatGpuMemSuspended);
  VALUE(ncclStatGpuMemPersist);
  VALUE(ncclStatGpuMemTotal);

  FUNCTION(ncclGetVersion, int *);
  FUNCTION(ncclGetUniqueId, ncclUniqueId *);
  TEXT(ncclGetErrorString, ncclResult_t);
  TEXT(ncclGetLastError, ncclComm_t);
  FUNCTION(ncclMemAlloc, void **, size_t);
  FUNCTION(ncclMemFree, void *);
  FUNCTION(ncclCommInitRankConfig, ncclComm_t *, int, ncclUniqueId, int, ncclConfig_t *);
  FUNCTION(ncclCommSplit, ncclComm_t, int, int, ncclComm_t *, ncclConfig_t *);
  FUNCTION(ncclCommFinalize, ncclComm_t);
  FUNCTION(ncclCommDestroy, ncclComm_t);
  FUNCTION(ncclCommAbort, ncclComm_t);
  FUNCTION(ncclCommGetAsyncError, ncclComm_t, ncclResult_t *);
  FUNCTION(ncclCommCount, ncclComm_t, int *);
  FUNCTION(ncclCommCuDevice, ncclComm_t, int *);
  FUNCTION(ncclCommUserRank, ncclComm_t, int *);
  FUNCTION(ncclCommMemStats, ncclComm_t, ncclCommMemStat_t, uint64_t *);
  FUNCTION(ncclCommRegister, ncclComm_t, void *, size_t, void **);
  FUNCTION(ncclCommDeregister, ncclComm_t, void *);
  FUNCTION(ncclGroupStart, void);
  FUNCTION(ncclGroupEnd, void);
  FUNCTION(ncclSend, const void *, size_t, ncclDataType_t, int, ncclComm_t, cudaStream_t);
  FUNCTION(ncclRecv, void *, size_t, ncclDataType_t, int, ncclComm_t, cudaStream_t);
  FUNCTION(ncclBroadcast, const void *, void *, size_t, ncclDataType_t, int, ncclComm_t, cudaStream_t);
  FUNCTION(ncclReduce, const void *, void *, size_t, ncclDataType_t, ncclRedOp_t, int, ncclComm_t, cudaStream_t);
  FUNCTION(ncclAllReduce, const void *, void *, size_t, ncclDataType_t, ncclRedOp_t, ncclComm_t, cudaStream_t);
  FUNCTION(ncclReduceScatter, const void *, void *, size_t, ncclDataType_t, ncclRedOp_t, ncclComm_t, cudaStream_t);
  FUNCTION(ncclAllGather, const void *, void *, size_t, ncclDataType_t, ncclComm_t, cudaStream_t);
  FUNCTION(ncclAlltoAll, const void *, void *, size_t, ncclDataType_t, ncclComm_t, cudaStream_t);
  FUNCTION(ncclGather, const void *, void *, size_t, ncclDataType_t, int, ncclComm_t, cudaStream_t);
  FUNCTION(ncclScatter, const void *, void *, size_t, ncclDataType_t, int, ncclComm_t, cudaStream_t);
  return 0;
}
