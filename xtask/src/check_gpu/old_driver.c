/* A driver that is too old: what CUDA's runtime asks of libcuda.so.1 before it refuses. Version 12080 is CUDA 12.8. */
int cuInit(unsigned flags) { (void)flags; return 0; }
int cuDriverGetVersion(int *version) { *version = 12080; return 0; }
