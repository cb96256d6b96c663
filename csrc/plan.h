// Tiles: which rows belong together, so that each tile has one language.
//
// Rows come from a stable counting sort of the tokens by language: tokens mixed in any order cost what grouped ones do,
// and work follows the tiles there are, not the number of languages. Tiles and their order follow from the input alone,
// hence statistics that do not depend on the number of threads.
#pragma once

#include <algorithm>
#include <cstdint>

namespace slamkern {

// With pieces of 2048 neurons a tile takes 512 KiB of the second-level cache, and its partial moments are 1.6 % of the
// traffic of gate, up and hidden.
constexpr int64_t TILE_ROWS = 64;

inline int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

// The tokens in the order of their language, those of no language last, and the tiles they make.
class Plan {
 public:
  struct Tile {
    int32_t first, rows, language;  // rows first.. of order()
  };

  static int64_t max_tiles(int64_t tokens, int64_t languages) { return tokens / TILE_ROWS + languages + 1; }
  static int64_t bytes(int64_t tokens, int64_t languages) {
    return 8 * divide_up((tokens + 2 * (languages + 2)) * 4 + max_tiles(tokens, languages) * 12, 8);
  }

  Plan(const int32_t* ids, int64_t tokens, int64_t languages, int64_t* count, void* memory) {
    order_ = static_cast<int32_t*>(memory);
    first_tile_ = order_ + tokens;
    int32_t* start = first_tile_ + languages + 2;
    tiles_ = reinterpret_cast<Tile*>(start + languages + 2);
    const auto group = [=](int64_t token) {
      const int32_t id = ids[token];
      return id >= 0 && id < languages ? id : static_cast<int32_t>(languages);
    };
    std::fill(start, start + languages + 2, 0);
    for (int64_t token = 0; token < tokens; ++token) ++start[group(token) + 1];
    for (int64_t language = 0; language <= languages; ++language) {
      const int32_t rows = start[language + 1];
      if (language < languages) count[language] = rows;
      first_tile_[language] = static_cast<int32_t>(count_);
      for (int32_t done = 0; done < rows; done += TILE_ROWS)
        tiles_[count_++] = {start[language] + done, std::min<int32_t>(rows - done, TILE_ROWS),
                            static_cast<int32_t>(language)};
      start[language + 1] += start[language];
    }
    first_tile_[languages + 1] = static_cast<int32_t>(count_);
    for (int64_t token = 0; token < tokens; ++token) order_[start[group(token)]++] = static_cast<int32_t>(token);
  }

  int64_t tiles() const { return count_; }
  const Tile& tile(int64_t i) const { return tiles_[i]; }
  int64_t first_tile(int64_t language) const { return first_tile_[language]; }
  int64_t token(int64_t i) const { return order_[i]; }

 private:
  int32_t *order_, *first_tile_;
  Tile* tiles_;
  int64_t count_ = 0;
};

}  // namespace slamkern
