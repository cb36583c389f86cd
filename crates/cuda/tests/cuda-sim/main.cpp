// Runs the kernels as a C++ program, for crates/cuda/tests/it/kernels.rs. Requests of 32-bit words arrive on
// stdin, answers go to stdout.
//
//   1 length words...                         the program that later splits use
//   2 sources hot wide counts...              a split: quotas, rank loads, peak, certificate,
//                                             words of Memory, sections
//   3 order seed                              the order of lanes from here on
//   4 length layout... experts ranks per_node source pairs quotas... counts...      shares
//   5 wide n experts ids...                   counts, faults
//   6 wide n experts length layout... shares... ids...     slots, faults
//
// Numbers of 64 bits are two words, low word first.
#define EK_HOST
#include "count.cu"
#include "map.cu"
#include "share.cu"
#include "solve.cu"

#include <cstdio>
#include <cstdlib>
#include <vector>

static std::vector<u32> input, output;
static std::size_t at = 0;

static u32 word() {
  if (at >= input.size()) {
    std::fprintf(stderr, "request ends early\n");
    std::exit(2);
  }
  return input[at++];
}

static u64 wide_word() {
  u64 low = word();
  return (u64)word() << 32 | low;
}

static std::vector<u32> words(u64 count) {
  std::vector<u32> values(count);
  for (u32& value : values) value = word();
  return values;
}

static std::vector<u64> wide_words(u64 count) {
  std::vector<u64> values(count);
  for (u64& value : values) value = wide_word();
  return values;
}

static void put(u32 value) { output.push_back(value); }
static void put_wide(u64 value) {
  put((u32)value);
  put((u32)(value >> 32));
}
static void put_all(const std::vector<u64>& values) {
  for (u64 value : values) put_wide(value);
}

static void solve(const std::vector<u32>& program) {
  u32 sources = word(), hot = word(), wide = word();
  Net net = {program.data()};
  std::vector<u32> counts = words((u64)sources * net[ITEMS]);
  Memory sizes(nullptr, net);
  u64 room = sizes.words + (hot ? program[HOT_END] : 0);
  // The size is exact, so that a sanitiser detects accesses beyond it. The memory holds invalid data, as
  // shared memory does.
  u32* shared = (u32*)std::malloc(4 * room);
  if (shared == nullptr) std::exit(3);
  for (u64 i = 0; i < room; ++i) shared[i] = 0xa5a5a5a5u;
  std::vector<u64> quotas(net[PAIRS]), rank_loads(net[RANKS]), peak(1);
  std::vector<u32> certificate((net[RANKS] + 31) / 32);
  Answer answer = {quotas.data(), rank_loads.data(), peak.data(), certificate.data()};
  ek_sections = 0;
  ek_launch([&] { split(Block(), shared, program.data(), counts.data(), sources, hot != 0, wide != 0, answer); });
  std::free(shared);
  put_all(quotas);
  put_all(rank_loads);
  put_all(peak);
  for (u32 bits : certificate) put(bits);
  put((u32)sizes.words);
  put((u32)ek_sections);
}

static void share_source() {
  std::vector<u32> layout = words(word());
  u32 experts = word(), ranks = word(), per_node = word(), source = word();
  u32 pairs = word();
  std::vector<u64> quotas = wide_words(pairs);
  std::vector<u32> counts = words((u64)ranks * experts);
  std::vector<u64> shares(layout[experts]);
  EK_GRID(block, (experts + 127) / 128) {
    ek_launch([&] {
      share_all(Block(), layout.data(), counts.data(), quotas.data(), experts, ranks, per_node, source, block * 128,
                128, shares.data());
    });
  }
  put_all(shares);
}

static u64 chunks_of(u32 n) { return (n + EK_CHUNK - 1) / EK_CHUNK; }

template <class Id> static std::vector<Id> read_ids(u32 n) {
  std::vector<Id> ids(n);
  for (Id& id : ids) id = (Id)wide_word();
  return ids;
}

template <class Id>
static std::vector<u32> count_ids(const std::vector<Id>& ids, u32 experts, std::vector<u32>& counts, u32* faults) {
  u64 chunks = chunks_of((u32)ids.size());
  std::vector<u32> histograms(chunks * experts), shared(experts);
  EK_GRID(chunk, chunks) {
    u32* histogram = histograms.data() + (u64)chunk * experts;
    ek_launch([&] {
      count_chunk(Block(), shared.data(), ids.data(), ids.size(), chunk, experts, histogram, faults);
    });
  }
  std::vector<u32> tile(EK_TILE);
  EK_GRID(expert, experts) {
    ek_launch([&] {
      EK_FIRST_WARP { count_before(Warp(), tile.data(), histograms.data(), chunks, experts, expert, counts.data()); }
    });
  }
  return histograms;
}

template <class Id> static void count_only(u32 n, u32 experts) {
  std::vector<Id> ids = read_ids<Id>(n);
  std::vector<u32> counts(experts);
  u32 faults = 0;
  count_ids(ids, experts, counts, &faults);
  for (u32 count : counts) put(count);
  put(faults);
}

template <class Id> static void map_ids(u32 n, u32 experts) {
  std::vector<u32> layout = words(word());
  std::vector<u64> shares = wide_words(layout[experts]);
  std::vector<Id> ids = read_ids<Id>(n), slots(n);
  std::vector<u32> counts(experts), shared(EK_CHUNK);
  u32 faults = 0;
  std::vector<u32> before = count_ids(ids, experts, counts, &faults);
  EK_GRID(chunk, chunks_of(n)) {
    const u32* own = before.data() + (u64)chunk * experts;
    ek_launch([&] {
      map_chunk(Block(), shared.data(), ids.data(), n, chunk, experts, own, layout.data(), shares.data(), slots.data(),
                &faults);
    });
  }
  for (Id slot : slots) put_wide((u64)(i64)slot);
  put(faults);
}

int main() {
  u32 buffer[4096];
  for (std::size_t got; (got = std::fread(buffer, 4, 4096, stdin)) > 0;) {
    input.insert(input.end(), buffer, buffer + got);
  }
  std::vector<u32> program;
  while (at < input.size()) {
    u32 request = word();
    if (request == 1) {
      program = words(word());
    } else if (request == 2) {
      solve(program);
    } else if (request == 3) {
      ek_order = (Order)word();
      ek_dice = word();
    } else if (request == 4) {
      share_source();
    } else if (request == 5 || request == 6) {
      u32 wide = word(), n = word(), experts = word();
      if (request == 5) wide ? count_only<i64>(n, experts) : count_only<i32>(n, experts);
      else wide ? map_ids<i64>(n, experts) : map_ids<i32>(n, experts);
    } else {
      std::fprintf(stderr, "no request %u\n", request);
      return 2;
    }
  }
  std::fwrite(output.data(), 4, output.size(), stdout);
  return 0;
}
