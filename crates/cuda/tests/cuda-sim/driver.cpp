// A CUDA driver, a kernel compiler and a cuBLAS for machines without a GPU. It implements the calls of this
// project to libcuda, libnvrtc and libcublas, and runs the kernels, compiled as C++. Tests build it as a
// shared library with these names and run the whole CUDA backend on it (crates/exec/tests/it/exec_cuda.rs).
// Launches, sizes, addresses, copies, streams and graphs are the real ones.
//
// It is stricter than a GPU in order to find mistakes:
//
// - Streams do nothing until they are waited for. Waiting for a stream advances another one only as far as
//   events demand, so a missing wait becomes visible.
// - New memory is filled with invalid data.
// - Copies must stay within one allocation.
// - Launches must have the number of threads of their kernel, no empty grid, and no more shared memory than
//   was requested.
// - With several devices, kernels of one cannot touch memory of another, like GPUs without peer access.
// - Under the address sanitiser kernels cannot leave their memory either.
//
// Together with nccl.cpp, processes exchange this memory (cli/tests/it/exec_nccl.rs).
//
// Environment: EK_ORDER is the order of lanes (0 ascending, 1 descending, 2 shuffled), EK_MEMORY the device
// memory in bytes. EK_DEVICES and EK_MULTIPROCESSORS are the numbers of these. EK_GPU is a number that
// identifies the GPU to other processes.
#define EK_HOST
#include <cmath>

#include "count.cu"
#include "dense.cu"
#include "dispatch.cu"
#include "ffn.cu"
#include "map.cu"
#include "route.cu"
#include "share.cu"
#include "solve.cu"

#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <deque>
#include <functional>
#include <map>
#include <mutex>
#include <string>
#include <sys/mman.h>
#include <tuple>
#include <unistd.h>
#include <utility>

#define API extern "C" __attribute__((visibility("default")))
#define GUARD std::lock_guard<std::recursive_mutex> guard(lock)

enum { OK = 0, INVALID = 1, NO_MEMORY = 2, NOT_READY = 600, ISOLATION = 905, UNJOINED = 904, UNSUPPORTED_CAPTURE = 900 };

static std::recursive_mutex lock;
typedef std::function<void()> Work;
typedef std::function<bool()> Try;

static int fail(const char* what) {
  std::fprintf(stderr, "driver: %s\n", what);
  return INVALID;
}

static u64 setting(const char* name, u64 otherwise) {
  const char* value = std::getenv(name);
  return value ? std::strtoull(value, nullptr, 10) : otherwise;
}

// ---- Streams, events, graphs

struct Stream;
struct GraphOf;

struct Event {
  u64 issued = 0, done = 0;
  Stream* on = nullptr;
  double time = 0;
  bool timed = true;
  GraphOf* graph = nullptr; // recorded while capturing this graph, after `after` operations of `lane`
  Stream* lane = nullptr;
  std::size_t after = 0;
};

struct Op {
  Work work;
  Try attempt; // replaces `work` if it may have to wait for another process
  Event* record = nullptr;
  Event* wait = nullptr;
  u64 ticket = 0;
  Stream* lane = nullptr; // within a graph: waits until this lane has done `after`
  std::size_t after = 0;
};

struct Stream {
  std::deque<Op> queue;
  GraphOf* capture = nullptr;
  u64 device = 0;
};

struct GraphOf {
  Stream* origin;
  std::map<Stream*, std::vector<Op>> lanes;

  void run(std::map<Stream*, std::size_t>& done, Stream* lane, std::size_t upto) {
    std::vector<Op>& ops = lanes[lane];
    while (done[lane] < upto) {
      Op& op = ops[done[lane]];
      if (op.lane) run(done, op.lane, op.after);
      if (op.work) op.work();
      ++done[lane];
    }
  }
  // Returns whether the origin waits for all work in the graph.
  bool joined() {
    std::map<Stream*, std::size_t> seen;
    std::vector<std::pair<Stream*, std::size_t>> open = {{origin, lanes[origin].size()}};
    while (!open.empty()) {
      auto [lane, upto] = open.back();
      open.pop_back();
      for (std::size_t& at = seen[lane]; at < upto; ++at) {
        if (lanes[lane][at].lane) open.push_back({lanes[lane][at].lane, lanes[lane][at].after});
      }
    }
    for (auto& [lane, ops] : lanes) {
      if (seen[lane] < ops.size()) return false;
    }
    return true;
  }
};

static double now() {
  return std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

static bool step(Stream* stream);

// Runs operations until an event has occurred. Returns false if one has to wait for another process.
static bool reach(Event* event, u64 ticket) {
  while (event->done < ticket && event->on && !event->on->queue.empty()) {
    if (!step(event->on)) return false;
  }
  return true;
}

// Runs the next operation. Returns false if it has to wait for another process.
static bool step(Stream* stream) {
  if (stream->queue.empty()) return true;
  Op& next = stream->queue.front();
  if (next.attempt && !next.attempt()) return false;
  if (next.wait && !reach(next.wait, next.ticket)) return false;
  Op op = std::move(stream->queue.front());
  stream->queue.pop_front();
  if (op.work) op.work();
  if (op.record) {
    op.record->done = op.ticket;
    op.record->time = now();
  }
  return true;
}

static void drain(Stream* stream) {
  while (!stream->queue.empty()) {
    if (!step(stream)) usleep(50);
  }
}

static thread_local u64 current = 0; // the device, counted from 1
// This state is never destroyed: a thread that a lost rank blocks may run while the process exits.
static std::vector<Stream*>& streams = *new std::vector<Stream*>;
static Stream* stream_of(void* handle) {
  static Stream& zero = *new Stream;
  return handle ? (Stream*)handle : &zero;
}

// Enqueues an operation of nccl.cpp that is retried until it is done.
void ek_enqueue(void* handle, Try attempt) {
  GUARD;
  Stream* stream = stream_of(handle);
  if (stream->capture) {
    fail("an exchange with another process while recording");
    return;
  }
  Op op;
  op.attempt = std::move(attempt);
  stream->queue.push_back(std::move(op));
}

static void enqueue(Stream* stream, Work work) {
  Op op;
  op.work = std::move(work);
  if (stream->capture) stream->capture->lanes[stream].push_back(std::move(op));
  else stream->queue.push_back(std::move(op));
}

API int cuStreamCreate(void** stream, unsigned) {
  GUARD;
  streams.push_back(new Stream);
  streams.back()->device = current;
  *stream = streams.back();
  return OK;
}
API int cuStreamDestroy_v2(void* stream) {
  GUARD;
  drain(stream_of(stream));
  return OK; // events may still refer to it
}
API int cuStreamSynchronize(void* stream) {
  GUARD;
  if (stream_of(stream)->capture) return UNSUPPORTED_CAPTURE;
  drain(stream_of(stream));
  return OK;
}
API int cuCtxSynchronize() {
  GUARD;
  for (Stream* stream : streams) drain(stream);
  return OK;
}
API int cuEventCreate(void** event, unsigned flags) {
  GUARD;
  Event* made = new Event;
  made->timed = !(flags & 2);
  *event = made;
  return OK;
}
API int cuEventDestroy_v2(void*) { return OK; } // operations may still refer to it
API int cuEventRecord(void* handle, void* on) {
  GUARD;
  Event* event = (Event*)handle;
  Stream* stream = stream_of(on);
  Op op;
  event->on = stream;
  if (stream->capture) {
    event->graph = stream->capture;
    event->lane = stream;
    event->after = stream->capture->lanes[stream].size();
    return OK;
  }
  event->graph = nullptr;
  op.record = event;
  op.ticket = ++event->issued;
  stream->queue.push_back(std::move(op));
  return OK;
}
API int cuStreamWaitEvent(void* waits, void* handle, unsigned) {
  GUARD;
  Stream* stream = stream_of(waits);
  Event* event = (Event*)handle;
  Op op;
  if (event->graph) {
    if (stream->capture && stream->capture != event->graph) return ISOLATION;
    stream->capture = event->graph;
    op.lane = event->lane;
    op.after = event->after;
    event->graph->lanes[stream].push_back(std::move(op));
    return OK;
  }
  if (stream->capture) return ISOLATION;
  op.wait = event;
  op.ticket = event->issued;
  stream->queue.push_back(std::move(op));
  return OK;
}
API int cuEventSynchronize(void* handle) {
  GUARD;
  Event* event = (Event*)handle;
  while (!reach(event, event->issued)) usleep(50);
  return OK;
}
// A query advances the stream as far as possible without another process.
API int cuEventQuery(void* handle) {
  GUARD;
  Event* event = (Event*)handle;
  reach(event, event->issued);
  return event->done < event->issued ? NOT_READY : OK;
}
API int cuEventElapsedTime_v2(float* ms, void* begin, void* end) {
  GUARD;
  Event *from = (Event*)begin, *to = (Event*)end;
  if (!from->timed || !to->timed) return fail("the time of an event without time");
  if (!from->issued || !to->issued) return fail("the time of an event that was not recorded");
  if (from->done < from->issued || to->done < to->issued) return NOT_READY;
  *ms = (float)(to->time - from->time);
  return OK;
}
API int cuStreamBeginCapture_v2(void* handle, int) {
  GUARD;
  Stream* stream = stream_of(handle);
  if (stream->capture) return INVALID;
  stream->capture = new GraphOf;
  stream->capture->origin = stream;
  stream->capture->lanes[stream];
  return OK;
}
API int cuStreamEndCapture(void* handle, void** graph) {
  GUARD;
  Stream* stream = stream_of(handle);
  if (!stream->capture) return INVALID;
  GraphOf* made = stream->capture;
  for (auto& lane : made->lanes) lane.first->capture = nullptr;
  *graph = nullptr;
  if (!made->joined()) return UNJOINED;
  *graph = made;
  return OK;
}
API int cuStreamIsCapturing(void* handle, int* status) {
  *status = stream_of(handle)->capture != nullptr;
  return OK;
}
API int cuGraphInstantiateWithFlags(void** exec, void* graph, u64) {
  *exec = graph;
  return OK;
}
API int cuGraphLaunch(void* exec, void* handle) {
  GUARD;
  GraphOf* graph = (GraphOf*)exec;
  enqueue(stream_of(handle), [graph] {
    std::map<Stream*, std::size_t> done;
    graph->run(done, graph->origin, graph->lanes[graph->origin].size());
  });
  return OK;
}
API int cuGraphDestroy(void*) { return OK; }
API int cuGraphExecDestroy(void*) { return OK; }

// ---- Devices and memory

static std::map<u64, u64>& allocations = *new std::map<u64, u64>; // address to bytes
static u64 used = 0;

static bool within(u64 address, u64 bytes) {
  auto next = allocations.upper_bound(address);
  if (next == allocations.begin()) return false;
  --next;
  return address + bytes <= next->first + next->second;
}

// Returns whether memory belongs to this device, for nccl.cpp.
bool ek_within(u64 address, u64 bytes) {
  GUARD;
  return within(address, bytes);
}

API int cuInit(unsigned) { return OK; }
API int cuDeviceGetCount(int* count) {
  *count = (int)setting("EK_DEVICES", 1);
  return OK;
}
API int cuDeviceGet(int* device, int ordinal) {
  *device = ordinal;
  return ordinal < (int)setting("EK_DEVICES", 1) ? OK : 101;
}
API int cuDeviceGetName(char* name, int length, int) {
  std::snprintf(name, (std::size_t)length, "host");
  return OK;
}
// Every process has its own GPUs unless EK_GPU names one.
API int cuDeviceGetUuid_v2(unsigned char* uuid, int ordinal) {
  const u64 gpu = setting("EK_GPU", (u64)getpid()) << 8 | (u64)ordinal;
  std::memset(uuid, 0, 16);
  std::memcpy(uuid, &gpu, 8);
  return OK;
}
API int cuDeviceGetAttribute(int* value, int which, int) {
  // Capability 9.0; shared memory of a block; multiprocessors; memory pools.
  *value = which == 75 ? 9 : which == 76 ? 0 : which == 97 ? 232448 : which == 16 ? (int)setting("EK_MULTIPROCESSORS", 3) : which == 115 ? 1 : 0;
  return OK;
}
API int cuDevicePrimaryCtxRetain(void** context, int device) {
  *context = (void*)(std::size_t)(device + 1);
  return OK;
}
API int cuDevicePrimaryCtxRelease_v2(int) { return OK; }
API int cuCtxGetCurrent(void** context) {
  *context = (void*)current;
  return OK;
}
API int cuCtxSetCurrent(void* context) {
  current = (u64)context;
  return OK;
}
API int cuMemGetInfo_v2(std::size_t* free, std::size_t* total) {
  GUARD;
  *total = setting("EK_MEMORY", 8ull << 30);
  *free = *total > used ? *total - used : 0;
  return OK;
}
// With several devices each has its own address range, which kernels of the others cannot touch.
struct Range {
  char* base = nullptr;
  u64 next = 0;
  std::multimap<u64, void*> freed; // by size
  static constexpr u64 BYTES = 64ull << 30;

  void protect(int how) {
    if (base && next > 0 && mprotect(base, (next + 4095) / 4096 * 4096, how) != 0) std::abort();
  }
};
static std::map<u64, Range>& ranges = *new std::map<u64, Range>;

static void alone(u64 device, const Work& work) {
  for (auto& [other, range] : ranges) {
    if (other != device) range.protect(PROT_NONE);
  }
  work();
  for (auto& [other, range] : ranges) range.protect(PROT_READ | PROT_WRITE);
}

static void* take(std::size_t bytes) {
  if (setting("EK_DEVICES", 1) == 1) return std::aligned_alloc(256, (bytes + 255) / 256 * 256);
  Range& range = ranges[current];
  if (!range.base) {
    const int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;
    void* memory = mmap(nullptr, Range::BYTES, PROT_READ | PROT_WRITE, flags, -1, 0);
    if (memory == MAP_FAILED) return nullptr;
    range.base = (char*)memory;
  }
  const u64 size = (bytes + 255) / 256 * 256;
  auto again = range.freed.find(size);
  if (again != range.freed.end()) {
    void* memory = again->second;
    range.freed.erase(again);
    return memory;
  }
  void* memory = range.base + range.next;
  range.next += size;
  return range.next <= Range::BYTES ? memory : nullptr;
}

static int allocate(u64* address, std::size_t bytes) {
  if (bytes == 0) return fail("an allocation of nothing");
  if (used + bytes > setting("EK_MEMORY", 8ull << 30)) return NO_MEMORY;
  void* memory = take(bytes);
  if (!memory) return NO_MEMORY;
  std::memset(memory, 0xcb, bytes);
  *address = (u64)memory;
  allocations[*address] = bytes;
  used += bytes;
  return OK;
}
static void release(u64 address) {
  used -= allocations[address];
  const u64 bytes = allocations[address];
  std::memset((void*)address, 0xcb, bytes);
  allocations.erase(address);
  for (auto& [device, range] : ranges) {
    if ((char*)address >= range.base && (char*)address < range.base + Range::BYTES) {
      range.freed.insert({(bytes + 255) / 256 * 256, (void*)address});
      return;
    }
  }
  std::free((void*)address);
}
API int cuMemAllocAsync(u64* address, std::size_t bytes, void*) {
  GUARD;
  return allocate(address, bytes);
}
API int cuMemAlloc_v2(u64* address, std::size_t bytes) {
  GUARD;
  return allocate(address, bytes);
}
API int cuMemFreeAsync(u64 address, void* handle) {
  GUARD;
  if (!allocations.count(address)) return fail("freeing what was not allocated");
  enqueue(stream_of(handle), [address] { release(address); });
  return OK;
}
API int cuMemFree_v2(u64 address) {
  GUARD;
  if (!allocations.count(address)) return fail("freeing what was not allocated");
  cuCtxSynchronize();
  release(address);
  return OK;
}
API int cuMemcpyHtoDAsync_v2(u64 to, const void* from, std::size_t bytes, void* handle) {
  GUARD;
  Stream* stream = stream_of(handle);
  if (stream->capture) return fail("a copy of pageable memory while recording");
  if (!within(to, bytes)) return fail("a copy beyond its memory");
  // Pageable memory is read before the call returns.
  std::vector<char> kept((const char*)from, (const char*)from + bytes);
  enqueue(stream, [to, kept = std::move(kept)] { std::memcpy((void*)to, kept.data(), kept.size()); });
  return OK;
}
API int cuMemcpyDtoHAsync_v2(void* to, u64 from, std::size_t bytes, void* handle) {
  GUARD;
  Stream* stream = stream_of(handle);
  if (stream->capture) return fail("a copy to pageable memory while recording");
  if (!within(from, bytes)) return fail("a copy beyond its memory");
  drain(stream);
  std::memcpy(to, (const void*)from, bytes);
  return OK;
}
API int cuMemcpyDtoDAsync_v2(u64 to, u64 from, std::size_t bytes, void* handle) {
  GUARD;
  if (!within(to, bytes) || !within(from, bytes)) return fail("a copy beyond its memory");
  enqueue(stream_of(handle), [=] { std::memcpy((void*)to, (const void*)from, bytes); });
  return OK;
}
API int cuMemcpyPeerAsync(u64 to, void*, u64 from, void*, std::size_t bytes, void* handle) {
  return cuMemcpyDtoDAsync_v2(to, from, bytes, handle);
}
API int cuMemsetD8Async(u64 to, unsigned char value, std::size_t bytes, void* handle) {
  GUARD;
  if (!within(to, bytes)) return fail("a fill beyond its memory");
  enqueue(stream_of(handle), [=] { std::memset((void*)to, value, bytes); });
  return OK;
}
API int cuGetErrorName(int, const char** name) {
  *name = "error";
  return OK;
}
API int cuGetErrorString(int, const char** text) {
  *text = "error";
  return OK;
}

// ---- Kernels

template <class... A, std::size_t... I>
static Work bound(void (*kernel)(A...), void** arguments, std::index_sequence<I...>) {
  std::tuple<std::remove_const_t<A>...> kept(*(std::remove_const_t<A>*)arguments[I]...);
  return [kernel, kept] { std::apply(kernel, kept); };
}
template <class... A> static std::function<Work(void**)> binder(void (*kernel)(A...)) {
  return [kernel](void** arguments) { return bound(kernel, arguments, std::index_sequence_for<A...>()); };
}

struct Kernel {
  u32 lanes;
  std::function<Work(void**)> bind;
  u32 shared = 48 << 10; // limit of dynamic shared memory
};

#define KERNEL(name, lanes) {#name, {lanes, binder(name)}}
static std::map<std::string, Kernel>& kernels = *new std::map<std::string, Kernel>{
    KERNEL(ek_count_i32, 256),   KERNEL(ek_count_i64, 256),  KERNEL(ek_count_before, 32), KERNEL(ek_solve, 256),
    KERNEL(ek_share, 128),       KERNEL(ek_map_i32, 256),    KERNEL(ek_map_i64, 256),     KERNEL(ek_norm, 256),
    KERNEL(ek_logits, 256),      KERNEL(ek_choose, 32),      KERNEL(ek_add_up, 256),      KERNEL(ek_room, 32),
    KERNEL(ek_first_copy, 256),  KERNEL(ek_bases, 256),      KERNEL(ek_place, 256),       KERNEL(ek_number_rows, 256),
    KERNEL(ek_pack, 256),        KERNEL(ek_accept, 256),     KERNEL(ek_answer, 256),      KERNEL(ek_combine, 256),
    KERNEL(ek_permute, 256),     KERNEL(ek_activate, 256),   KERNEL(ek_weigh, 256),       KERNEL(ek_pair_16, 256),
    KERNEL(ek_pair_64, 256),     KERNEL(ek_pair_128, 256),   KERNEL(ek_single_16, 256),   KERNEL(ek_single_64, 256),
    KERNEL(ek_single_128, 256),
};

API int cuModuleLoadData(void** module, const void*) {
  *module = (void*)1;
  return OK;
}
API int cuModuleUnload(void*) { return OK; }
API int cuModuleGetFunction(void** function, void*, const char* name) {
  auto found = kernels.find(name);
  if (found == kernels.end()) return 500;
  *function = &found->second;
  return OK;
}
API int cuFuncSetAttribute(void* function, int which, int value) {
  if (which == 8) ((Kernel*)function)->shared = (u32)value;
  return OK;
}
API int cuOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(int* blocks, void*, int, std::size_t, unsigned) {
  *blocks = 2;
  return OK;
}
API int cuLaunchKernel(void* function, u32 x, u32 y, u32 z, u32 lanes, u32 lanes_y, u32 lanes_z, u32 shared, void* handle,
                       void** arguments, void**) {
  GUARD;
  Kernel* kernel = (Kernel*)function;
  if (x == 0 || y == 0 || z == 0 || y > 65535 || z > 65535) return fail("a grid that cannot be");
  if (lanes != kernel->lanes || lanes_y != 1 || lanes_z != 1) return fail("other lanes than the kernel is written for");
  if (shared > kernel->shared) return fail("more shared memory than was asked for");
  Work work = kernel->bind(arguments);
  const u64 device = stream_of(handle)->device;
  Work launch = [=] {
    gridDim = {x, y, z};
    EK_GRID(block, (u64)x * y * z) {
      blockIdx = {block % x, block / x % y, block / x / y};
      // The size is exact, so that a sanitiser detects accesses beyond it.
      std::vector<u64> memory((shared + 7) / 8 + 1, 0xa5a5a5a5a5a5a5a5ull);
      ek_shared_memory = (char*)memory.data() + (((std::size_t)memory.data() & 15) ? 8 : 0);
#ifdef EK_THREADS
      blockDim.x = lanes;
#endif
      ek_launch(work);
    }
  };
  enqueue(stream_of(handle), [device, launch] { alone(device, launch); });
  return OK;
}

// ---- The compiler

API int nvrtcVersion(int* major, int* minor) {
  *major = 0;
  *minor = 0;
  return OK;
}
API int nvrtcCreateProgram(void** program, const char*, const char*, int, const char* const*, const char* const*) {
  *program = (void*)1;
  return OK;
}
API int nvrtcDestroyProgram(void**) { return OK; }
API int nvrtcCompileProgram(void*, int, const char* const*) { return OK; }
API int nvrtcGetProgramLogSize(void*, std::size_t* size) {
  *size = 1;
  return OK;
}
API int nvrtcGetProgramLog(void*, char* log) {
  *log = 0;
  return OK;
}
API int nvrtcGetCUBINSize(void*, std::size_t* size) {
  *size = 4;
  return OK;
}
API int nvrtcGetCUBIN(void*, char* cubin) {
  std::memcpy(cubin, "host", 4);
  return OK;
}

// ---- cuBLAS: bf16 in and out, f32 sums, column after column

struct Blas {
  Stream* stream;
};
API int cublasCreate_v2(void** handle) {
  *handle = new Blas{stream_of(nullptr)};
  return OK;
}
API int cublasDestroy_v2(void* handle) {
  delete (Blas*)handle;
  return OK;
}
API int cublasSetStream_v2(void* handle, void* stream) {
  ((Blas*)handle)->stream = stream_of(stream);
  return OK;
}

static void product(int ta, int tb, int m, int n, int k, float alpha, const u16* a, int lda, const u16* b, int ldb, float beta,
                    u16* c, int ldc) {
  for (int j = 0; j < n; ++j) {
    for (int i = 0; i < m; ++i) {
      float sum = 0;
      for (int l = 0; l < k; ++l) {
        const float left = wide(ta ? a[(u64)i * lda + l] : a[(u64)l * lda + i]);
        sum += left * wide(tb ? b[(u64)l * ldb + j] : b[(u64)j * ldb + l]);
      }
      u16& to = c[(u64)j * ldc + i];
      to = narrow(alpha * sum + (beta == 0 ? 0 : beta * wide(to)));
    }
  }
}

API int cublasGemmEx(void* handle, int ta, int tb, int m, int n, int k, const float* alpha, const void* a, int, int lda,
                     const void* b, int, int ldb, const float* beta, void* c, int, int ldc, int, int) {
  GUARD;
  const float scale = *alpha, kept = *beta;
  enqueue(((Blas*)handle)->stream, [=] {
    product(ta, tb, m, n, k, scale, (const u16*)a, lda, (const u16*)b, ldb, kept, (u16*)c, ldc);
  });
  return OK;
}
API int cublasGemmGroupedBatchedEx(void* handle, const int* ta, const int* tb, const int* m, const int* n, const int* k,
                                   const float* alpha, const u64* a, int, const int* lda, const u64* b, int, const int* ldb,
                                   const float* beta, const u64* c, int, const int* ldc, int groups, const int* sizes, int) {
  GUARD;
  // Sizes and factors are on the host, addresses on the device.
  int first = 0;
  for (int group = 0; group < groups; ++group) {
    for (int i = 0; i < sizes[group]; ++i, ++first) {
      if (!within((u64)(a + first), 8) || !within((u64)(b + first), 8) || !within((u64)(c + first), 8)) {
        return fail("addresses of matrices that are not on the device");
      }
      enqueue(((Blas*)handle)->stream,
              [=, ta = ta[group], tb = tb[group], m = m[group], n = n[group], k = k[group], alpha = alpha[group],
               lda = lda[group], ldb = ldb[group], beta = beta[group], ldc = ldc[group]] {
                product(ta, tb, m, n, k, alpha, (const u16*)a[first], lda, (const u16*)b[first], ldb, beta,
                        (u16*)c[first], ldc);
              });
    }
  }
  return OK;
}

__attribute__((constructor)) static void begin() { ek_order = (Order)setting("EK_ORDER", 0); }
