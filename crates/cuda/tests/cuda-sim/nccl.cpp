// An NCCL for machines without a GPU. It implements the calls of this project to libnccl over sockets of this
// host. It reads the memory of driver.cpp and keeps the order of its streams. For tests only
// (cli/tests/it/exec_nccl.rs): it is built into the same shared library and found under NCCL's name.
//
// It is stricter than NCCL in order to find mistakes:
//
// - A non-blocking operation is under way until it is queried, and no other operation may begin on the
//   communicator before.
// - Nothing moves until its stream is waited for.
// - The sizes of both sides must be equal, and memory must belong to the device, within one allocation.
// - A rank on the same GPU is rejected, as NCCL does.
// - A communicator with a lost neighbour reports that when it is queried. Its streams stand still until it is
//   aborted.
#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <deque>
#include <fcntl.h>
#include <functional>
#include <memory>
#include <string>
#include <sys/random.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>
#include <vector>

#define API extern "C" __attribute__((visibility("default")))

typedef unsigned long long u64;
typedef std::function<bool()> Try;
void ek_enqueue(void* stream, Try attempt);
bool ek_within(u64 address, u64 bytes);
extern "C" int cuDeviceGetUuid_v2(unsigned char* uuid, int device);
extern "C" int cuCtxGetCurrent(void** context);

enum { OK = 0, SYSTEM = 2, ARGUMENT = 4, USAGE = 5, REMOTE = 6, IN_PROGRESS = 7 };

struct Id {
  char bytes[128];
};

static int refuse(const char* what) {
  std::fprintf(stderr, "nccl: %s\n", what);
  return USAGE;
}

// Data to or from another rank: 8 bytes of length, then the bytes.
struct Part {
  char* at;
  u64 bytes;
  u64 header = 0, done = 0; // bytes of both that have been transferred
  u64 announced = 0;
};

struct Peer {
  int to = -1, from = -1;
};

// The first message on a connection.
struct Hello {
  std::uint32_t rank, ranks;
  unsigned char gpu[16];
};

struct Comm {
  int rank, ranks, listening = -1, error = OK;
  bool joined = false, busy = false, aborted = false;
  std::string name;
  Hello self;
  std::vector<Peer> peers;
  std::vector<int> open; // connections without a received Hello
  std::size_t came = 0;
};

struct Group {
  Comm* comm;
  void* stream;
  std::vector<std::pair<int, Part>> sends, receives;
};

static thread_local int depth = 0;
static thread_local std::vector<Group> pending;

static sockaddr_un address_of(const std::string& name, int rank, socklen_t* length) {
  sockaddr_un address = {};
  address.sun_family = AF_UNIX;
  // A name that begins with 0 is in no folder, and disappears with its socket.
  const std::string full = "ek-nccl-" + name + "-" + std::to_string(rank);
  std::memcpy(address.sun_path + 1, full.data(), full.size());
  *length = (socklen_t)(offsetof(sockaddr_un, sun_path) + 1 + full.size());
  return address;
}

static void close_all(Comm* comm) {
  for (Peer& peer : comm->peers) {
    for (int* socket : {&peer.to, &peer.from}) {
      if (*socket >= 0) close(*socket);
      *socket = -1;
    }
  }
  for (int socket : comm->open) close(socket);
  comm->open.clear();
  if (comm->listening >= 0) close(comm->listening);
  comm->listening = -1;
}

static bool all_of(int socket, const void* bytes, std::size_t length) {
  return send(socket, bytes, length, MSG_NOSIGNAL) == (ssize_t)length;
}

// Connects to the ranks that already listen, and accepts the connections of others.
static int join(Comm* comm) {
  for (int other = 0; other < comm->ranks; ++other) {
    Peer& peer = comm->peers[(std::size_t)other];
    if (other == comm->rank || peer.to >= 0) continue;
    socklen_t length;
    const sockaddr_un address = address_of(comm->name, other, &length);
    const int made = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (connect(made, (const sockaddr*)&address, length) != 0) {
      close(made);
      continue;
    }
    if (!all_of(made, &comm->self, sizeof comm->self)) return SYSTEM;
    fcntl(made, F_SETFL, O_NONBLOCK);
    peer.to = made;
  }
  for (;;) {
    const int came = accept4(comm->listening, nullptr, nullptr, SOCK_NONBLOCK | SOCK_CLOEXEC);
    if (came < 0) break;
    comm->open.push_back(came);
  }
  for (std::size_t at = 0; at < comm->open.size();) {
    Hello hello;
    const ssize_t read = recv(comm->open[at], &hello, sizeof hello, 0);
    if (read < 0 && errno == EAGAIN) {
      ++at;
      continue;
    }
    if (read != (ssize_t)sizeof hello || hello.ranks != (std::uint32_t)comm->ranks) return SYSTEM;
    if (std::memcmp(hello.gpu, comm->self.gpu, sizeof hello.gpu) == 0) return refuse("Duplicate GPU detected");
    comm->peers[hello.rank].from = comm->open[at];
    comm->open.erase(comm->open.begin() + (std::ptrdiff_t)at);
    ++comm->came;
  }
  for (int other = 0; other < comm->ranks; ++other) {
    if (other != comm->rank && (comm->peers[(std::size_t)other].to < 0 || comm->peers[(std::size_t)other].from < 0)) {
      return IN_PROGRESS;
    }
  }
  comm->joined = true;
  return OK;
}

// Sends or receives as much as possible without waiting. Returns true after the whole part. Errors are
// recorded in the communicator.
static bool pass(Comm* comm, int socket, Part& part, bool sends) {
  for (;;) {
    const bool head = part.header < 8;
    if (!head && part.done == part.bytes) return true;
    char* at = head ? (char*)&part.announced + part.header : part.at + part.done;
    const std::size_t rest = (std::size_t)(head ? 8 - part.header : part.bytes - part.done);
    const ssize_t passed = sends ? send(socket, at, rest, MSG_NOSIGNAL | MSG_DONTWAIT) : recv(socket, at, rest, MSG_DONTWAIT);
    if (passed < 0 && (errno == EAGAIN || errno == EINTR)) return false;
    if (passed <= 0) {
      comm->error = REMOTE;
      return false;
    }
    (head ? part.header : part.done) += (u64)passed;
    if (head && part.header == 8 && part.announced != part.bytes) {
      std::fprintf(stderr, "nccl: rank %d receives %llu bytes of the %llu that are sent\n", comm->rank,
                   (unsigned long long)part.bytes, (unsigned long long)part.announced);
      comm->error = USAGE;
      return false;
    }
  }
}

static bool done(Comm* comm, Group& group) {
  if (comm->aborted) {
    // Later work in the stream reads data that never arrived: zeros, rather than old contents, mean no rows.
    for (auto& [peer, part] : group.receives) {
      if (ek_within((u64)part.at, part.bytes)) std::memset(part.at + part.done, 0, (std::size_t)(part.bytes - part.done));
    }
    return true;
  }
  if (comm->error != OK) return false;
  bool all = true;
  // Parts between two ranks are transferred in order; different ranks proceed concurrently.
  std::vector<bool> waits((std::size_t)comm->ranks, false);
  for (auto& [peer, part] : group.sends) {
    if (waits[(std::size_t)peer]) continue;
    if (!pass(comm, comm->peers[(std::size_t)peer].to, part, true)) {
      waits[(std::size_t)peer] = true;
      all = false;
    }
  }
  waits.assign((std::size_t)comm->ranks, false);
  for (auto& [peer, part] : group.receives) {
    if (waits[(std::size_t)peer]) continue;
    if (!pass(comm, comm->peers[(std::size_t)peer].from, part, false)) {
      waits[(std::size_t)peer] = true;
      all = false;
    }
  }
  return all && comm->error == OK;
}

static u64 width(int type) {
  static const u64 widths[] = {1, 1, 4, 4, 8, 8, 2, 4, 8, 2, 1, 1};
  return type >= 0 && type < 12 ? widths[type] : 0;
}

static int ready(Comm* comm, int peer, u64 address, u64 bytes, int type) {
  if (!comm->joined || comm->aborted) return refuse("a communicator that has not joined, or was aborted");
  if (comm->busy) return refuse("a communicator that is still at work on what was begun before");
  if (peer < 0 || peer >= comm->ranks || width(type) == 0) return ARGUMENT;
  if (bytes > 0 && !ek_within(address, bytes)) return refuse("memory that is not of one allocation of the device");
  return OK;
}

static Group& group_of(Comm* comm, void* stream) {
  for (Group& group : pending) {
    if (group.comm == comm && group.stream == stream) return group;
  }
  pending.push_back(Group{comm, stream, {}, {}});
  return pending.back();
}

static int launch() {
  int result = OK;
  for (Group& made : pending) {
    Comm* comm = made.comm;
    // Parts from a rank to itself are matched here.
    auto group = std::make_shared<Group>();
    *group = std::move(made);
    std::deque<Part> own;
    auto& sends = group->sends;
    for (std::size_t at = 0; at < sends.size();) {
      if (sends[at].first != comm->rank) {
        sends[at].second.announced = sends[at].second.bytes;
        ++at;
        continue;
      }
      own.push_back(sends[at].second);
      sends.erase(sends.begin() + (std::ptrdiff_t)at);
    }
    auto copies = std::make_shared<std::vector<std::pair<Part, Part>>>();
    auto& receives = group->receives;
    for (std::size_t at = 0; at < receives.size();) {
      if (receives[at].first != comm->rank) {
        ++at;
        continue;
      }
      if (own.empty() || own.front().bytes != receives[at].second.bytes) return refuse("own parts that do not meet");
      copies->push_back({own.front(), receives[at].second});
      own.pop_front();
      receives.erase(receives.begin() + (std::ptrdiff_t)at);
    }
    if (!own.empty()) return refuse("own parts that do not meet");
    auto copied = std::make_shared<bool>(false);
    ek_enqueue(group->stream, [comm, group, copies, copied] {
      if (!*copied) {
        for (auto& [from, to] : *copies) std::memmove(to.at, from.at, (std::size_t)from.bytes);
        *copied = true;
      }
      return done(comm, *group);
    });
    comm->busy = true;
    result = IN_PROGRESS;
  }
  pending.clear();
  return result;
}

API int ncclGetVersion(int* version) {
  *version = 22800;
  return OK;
}
API int ncclGetUniqueId(Id* id) {
  std::memset(id, 0, sizeof *id);
  unsigned char random[16];
  if (getrandom(random, sizeof random, 0) != (ssize_t)sizeof random) return SYSTEM;
  for (int at = 0; at < 16; ++at) std::snprintf(id->bytes + 2 * at, 3, "%02x", random[at]);
  return OK;
}
API const char* ncclGetErrorString(int error) {
  switch (error) {
    case OK: return "no error";
    case SYSTEM: return "unhandled system error";
    case ARGUMENT: return "invalid argument";
    case USAGE: return "invalid usage";
    case REMOTE: return "remote process exited or there was a network error";
    case IN_PROGRESS: return "NCCL operation in progress";
    default: return "unknown result code";
  }
}
API const char* ncclGetLastError(void*) { return ""; }

API int ncclCommInitRankConfig(void** out, int ranks, Id id, int rank, void* config) {
  // The fields are the size, a magic number, the version, and the blocking flag.
  const int* fields = (const int*)config;
  if (fields[2] != (int)0xcafebeef) return refuse("a configuration that was not begun as one");
  if (fields[4] != 0) return refuse("this NCCL does not block");
  if (rank < 0 || rank >= ranks) return ARGUMENT;
  Comm* comm = new Comm;
  comm->rank = rank;
  comm->ranks = ranks;
  comm->name.assign(id.bytes, strnlen(id.bytes, 32));
  comm->peers.resize((std::size_t)ranks);
  comm->self = {};
  comm->self.rank = (std::uint32_t)rank;
  comm->self.ranks = (std::uint32_t)ranks;
  void* context = nullptr;
  cuCtxGetCurrent(&context);
  if (!context) return refuse("no device was chosen");
  cuDeviceGetUuid_v2(comm->self.gpu, (int)(std::size_t)context - 1);
  comm->listening = socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
  socklen_t length;
  const sockaddr_un address = address_of(comm->name, rank, &length);
  if (bind(comm->listening, (const sockaddr*)&address, length) != 0 || listen(comm->listening, ranks) != 0) return SYSTEM;
  *out = comm;
  return IN_PROGRESS;
}
API int ncclCommGetAsyncError(void* handle, int* error) {
  Comm* comm = (Comm*)handle;
  if (!comm->joined && comm->error == OK) {
    const int result = join(comm);
    if (result != OK && result != IN_PROGRESS) comm->error = result;
    *error = result;
    return OK;
  }
  // The operation stays under way for one query, so that callers that do not query are detected.
  *error = comm->error != OK ? comm->error : comm->busy ? IN_PROGRESS : OK;
  comm->busy = false;
  return OK;
}
API int ncclCommAbort(void* handle) {
  // Operations of streams may still refer to it, so it is closed but not freed.
  Comm* comm = (Comm*)handle;
  comm->aborted = true;
  close_all(comm);
  return OK;
}
API int ncclCommFinalize(void* handle) {
  Comm* comm = (Comm*)handle;
  if (comm->busy) return refuse("a communicator that is still at work on what was begun before");
  comm->busy = true;
  return IN_PROGRESS;
}
API int ncclCommDestroy(void* handle) { return ncclCommAbort(handle); }

API int ncclGroupStart() {
  ++depth;
  return OK;
}
API int ncclGroupEnd() {
  if (depth == 0) return refuse("the end of a group that was not begun");
  return --depth == 0 ? launch() : OK;
}

static int add(Comm* comm, void* stream, int peer, void* memory, u64 count, int type, bool sends) {
  const u64 bytes = count * width(type);
  const int result = ready(comm, peer, (u64)memory, bytes, type);
  if (result != OK) return result;
  Part part = {(char*)memory, bytes};
  Group& group = group_of(comm, stream);
  (sends ? group.sends : group.receives).push_back({peer, part});
  return OK;
}

API int ncclSend(const void* memory, std::size_t count, int type, int peer, void* comm, void* stream) {
  ncclGroupStart();
  const int added = add((Comm*)comm, stream, peer, (void*)memory, count, type, true);
  const int ended = ncclGroupEnd();
  return added == OK ? ended : added;
}
API int ncclRecv(void* memory, std::size_t count, int type, int peer, void* comm, void* stream) {
  ncclGroupStart();
  const int added = add((Comm*)comm, stream, peer, memory, count, type, false);
  const int ended = ncclGroupEnd();
  return added == OK ? ended : added;
}
API int ncclAllGather(const void* own, void* all, std::size_t count, int type, void* handle, void* stream) {
  Comm* comm = (Comm*)handle;
  int result = OK;
  ncclGroupStart();
  for (int peer = 0; peer < comm->ranks && result == OK; ++peer) {
    result = add(comm, stream, peer, (void*)own, count, type, true);
    char* to = (char*)all + (u64)peer * count * width(type);
    if (result == OK) result = add(comm, stream, peer, to, count, type, false);
  }
  const int ended = ncclGroupEnd();
  return result == OK ? ended : result;
}
