// Kernels as host functions. The launching code sets the running block and its shared memory
// (crates/cuda/tests/cuda-sim/driver.cpp).
#pragma once

#include <cstddef>
#include <cstdint>

struct Dim3 {
  u32 x, y, z;
};
// Blocks run one after the other. With a thread per lane all threads share these variables.
#ifdef EK_THREADS
#define EK_OF_BLOCK
#else
#define EK_OF_BLOCK thread_local
#endif
inline EK_OF_BLOCK Dim3 blockIdx = {0, 0, 0}, gridDim = {1, 1, 1};
inline EK_OF_BLOCK void* ek_shared_memory = nullptr;

#define EK_KERNEL(threads) inline void
#define EK_GRID_KERNEL(threads, blocks) inline void
#define EK_SHARED(type, name) type* name = (type*)ek_shared_memory
#define EK_SHARED_ARRAY(type, name, n) static EK_OF_BLOCK type name[n]
