// Kernels as functions of a host: which block runs, and its shared memory, are set by whoever launches them
// (kernels/host/driver.cpp).
#pragma once

#include <cstddef>
#include <cstdint>

struct Dim3 {
  u32 x, y, z;
};
// Blocks run one after the other: with a thread per lane these are the same for all.
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
