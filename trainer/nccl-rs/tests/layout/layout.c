/* Prints what a binding must know of nccl.h: sizes, alignments, offsets and the values of its names, one fact a line.
 * The golden text beside this file is what it prints with the header of NCCL 2.29.7. */
#include <nccl.h>
#include <stddef.h>
#include <stdio.h>

#define SIZE(type) printf("size %s %zu\n", #type, sizeof(type)), printf("align %s %zu\n", #type, _Alignof(type))
#define OFFSET(type, field) printf("offset %s.%s %zu\n", #type, #field, offsetof(type, field))
#define VALUE(name) printf("value %s %lld\n", #name, (long long)(name))

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
  return 0;
}
