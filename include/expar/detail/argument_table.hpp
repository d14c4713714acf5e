// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>
#include <initializer_list>

#include <expar/error.hpp>
#include <expar/tensor.hpp>

namespace expar::inline v0::detail {

/// What an argument must satisfy: the extent of its next dimension and why, or which other argument
/// it may be.
struct rule {
  index_t extent;
  char const* text;
  bool alias = false;
};
inline constexpr rule any_extent{0, nullptr};

/// The argument may be the tensor `name` itself, row by row, and is otherwise apart from it.
constexpr rule may_be(char const* name) {
  return {0, name, true};
}

using rules = std::initializer_list<rule>;

/// The arguments of one call, each named once: what is read, what is written, what it may not
/// touch. The first that does not fit throws "operation: argument ...". What is written may share
/// no byte with any other argument of the call but one that it may_be(), in whatever order they
/// are named, so that no operation forgets a pair.
class argument_table {
 public:
  explicit argument_table(char const* operation) : operation_(operation) {}

  /// The name of the operation, with which sentences about its other arguments begin.
  char const* c_str() const { return operation_; }
  operator char const*() const { return operation_; }

  template <class T, int Rank>
  void reads(char const* name, tensor_view<T, Rank> const& v, rules fits = {}) {
    add(shape_of(name, v), access::read, fits);
  }
  template <class T, int Rank>
  void writes(char const* name, tensor_view<T, Rank> const& v, rules fits = {}) {
    add(shape_of(name, v), access::written, fits);
  }
  /// What is added to is no other argument, whatever it may be where it is overwritten.
  template <class T, int Rank>
  void adds(char const* name, tensor_view<T, Rank> const& v, rules fits = {}) {
    add(shape_of(name, v), access::added_to, fits);
  }

 private:
  static constexpr int most_dimensions = 3, most_arguments = 24, most_aliases = 3;
  enum class access { read, written, added_to };
  struct element_size {
    std::size_t bytes, alignment;
  };
  template <class T>
  static constexpr element_size of_type{sizeof(T), alignof(T)};

  struct shape {
    char const* name;
    void const* data;
    element_size const* type;
    int rank;
    index_t const *extents, *strides;
    bool countable;  // whether nothing that is computed of it can overflow, as nearly always
    index_t elements, reach;  // then: how many, and from the first to the last
  };
  /// `rows` pieces of `width` bytes, `pitch` bytes apart.
  struct footprint {
    char const* name;
    element_size const* type;
    std::uintptr_t data, first, last;
    index_t rows, pitch, width;
    bool written;
    int aliases;
    char const* alias[most_aliases];
  };

  template <class T, int Rank>
  static shape shape_of(char const* name, tensor_view<T, Rank> const& v) {
    index_t all = 0, elements = 1, reach = 0;
    for (int i = 0; i < Rank; ++i) all |= v.extents[i] | v.strides[i];
    bool const countable = (all >> 26) == 0 && sizeof(T) <= 256;
    for (int i = 0; countable && i < Rank; ++i) {
      elements *= v.extents[i];
      reach += (v.extents[i] - 1) * v.strides[i];
    }
    return {name,      v.data,    &of_type<T const>, Rank, v.extents,
            v.strides, countable, elements,          reach};
  }

  void add(shape const& s, access how, rules fits) {
    bool const written = how != access::read;
    expects(count_ < most_arguments, operation_, ": more than ", most_arguments,
            " tensors take part");
    footprint& f = seen_[count_];
    put_footprint(s, f);
    f.written = written;
    f.aliases = 0;
    int dimension = 0;
    for (rule const& r : fits) {
      if (r.alias) {
        if (how == access::written) f.alias[f.aliases++] = r.text;
      } else {
        index_t const extent = s.extents[dimension];
        if (r.text != nullptr && extent != r.extent)
          fail(operation_, ": ", s.name, " has extent ", extent, " in dimension ", dimension,
               ", but ", r.text, " is ", r.extent);
        ++dimension;
      }
    }
    index_t const apart = f.pitch < 0 ? -f.pitch : f.pitch;
    if (auto const bytes = static_cast<index_t>(s.type->bytes);
        written && f.rows > 1 && f.width > apart)
      fail(operation_, ": ", s.name, " has rows of ", f.width / bytes, " elements only ",
           apart / bytes, " elements apart; rows that are written must not overlap");
    for (int i = 0; i < count_; ++i)
      if (written || seen_[i].written) check_pair(f, seen_[i]);
    ++count_;
  }

  /// What a tensor covers; throws unless it can be read row by row.
  void put_footprint(shape const& s, footprint& f) const {
    auto const bytes = static_cast<index_t>(s.type->bytes);
    f.name = s.name, f.type = s.type, f.data = reinterpret_cast<std::uintptr_t>(s.data);
    f.first = 0, f.last = 0, f.rows = 0, f.pitch = 0, f.width = 0;
    index_t const elements = s.countable ? s.elements : elements_of(s);
    if (elements == 0) return;
    expects(s.data != nullptr, operation_, ": ", s.name, " has ", elements,
            " elements but its data is null");
    if (auto const behind = f.data & (s.type->alignment - 1); behind != 0)
      fail(operation_, ": ", s.name, " begins at an address that is ", behind, " modulo ",
           s.type->alignment, "; its elements are aligned to ", s.type->alignment, " bytes");
    int const inner = s.rank - 1;
    expects(s.rank == 1 || s.strides[inner] == 1 || s.extents[inner] == 1, operation_, ": ", s.name,
            " has stride ", s.strides[inner],
            " in its last dimension; it must be contiguous there (stride 1)");

    index_t low = 0, high = bytes + (s.countable ? s.reach * bytes : 0);
    if (!s.countable) reach_of(s, low, high);
    f.first = f.data + static_cast<std::uintptr_t>(low);
    f.last = f.data + static_cast<std::uintptr_t>(high);
    bool const packed_vector = s.rank == 1 && (s.strides[0] == 1 || s.extents[0] == 1);
    bool const matrix = s.rank == 2;
    f.rows = matrix || (s.rank == 1 && !packed_vector) ? s.extents[0] : 1;
    f.pitch = f.rows > 1 ? s.strides[0] * bytes : 0;
    f.width = matrix ? s.extents[1] * bytes : s.rank == 1 && !packed_vector ? bytes : high - low;
  }

  index_t elements_of(shape const& s) const {
    index_t elements = 1;
    for (int i = 0; i < s.rank; ++i)
      expects(s.extents[i] >= 0, operation_, ": ", s.name, " has extent ", s.extents[i],
              " in dimension ", i, "; an extent is at least 0");
    for (int i = 0; i < s.rank; ++i)
      expects(s.extents[i] == 0 || !__builtin_mul_overflow(elements, s.extents[i], &elements),
              operation_, ": ", s.name, " has extent ", s.extents[i], " in dimension ", i,
              ", and more than ", PTRDIFF_MAX, " elements");
    for (int i = 0; i < s.rank; ++i)
      if (s.extents[i] == 0) return 0;
    return elements;
  }
  /// The bytes that it covers, from the lowest to behind the highest.
  void reach_of(shape const& s, index_t& low, index_t& high) const {
    auto const bytes = static_cast<index_t>(s.type->bytes);
    for (int i = 0; i < s.rank; ++i) {
      index_t reach = 0;
      index_t& end = s.strides[i] < 0 ? low : high;
      expects(!__builtin_mul_overflow(s.extents[i] - 1, s.strides[i], &reach) &&
                  !__builtin_mul_overflow(reach, bytes, &reach) &&
                  !__builtin_add_overflow(end, reach, &end),
              operation_, ": ", s.name, " has stride ", s.strides[i], " in dimension ", i,
              ", and reaches over more than ", PTRDIFF_MAX, " bytes");
    }
  }

  void check_pair(footprint const& a, footprint const& b) const {
    footprint const& out = a.written ? a : b;
    footprint const& other = a.written ? b : a;
    if (!overlap(out, other)) return;
    bool const allowed = names(out, other.name) || names(other, out.name);
    bool const same = allowed && out.data == other.data && out.type == other.type &&
                      out.width == other.width && (out.rows <= 1 || out.pitch == other.pitch);
    expects(same, operation_, ": ", out.name, " overlaps ", other.name, " in memory; ",
            allowed ? "it is that very tensor, or apart from it"
                    : "the operation cannot work in place");
  }
  static bool names(footprint const& f, char const* name) {
    for (int a = 0; a < f.aliases; ++a) {
      char const* const alias = f.alias[a];
      int i = 0;
      while (alias[i] != '\0' && alias[i] == name[i]) ++i;
      if (alias[i] == name[i]) return true;
    }
    return false;
  }

  /// Whether two footprints share a byte. Exact where their rows have one pitch, as column blocks
  /// of one buffer, or one of them has a single row; else by where they begin and end.
  static bool overlap(footprint const& a, footprint const& b) {
    if (a.first == a.last || b.first == b.last || a.last <= b.first || b.last <= a.first)
      return false;
    index_t const pitch = a.rows > 1 ? a.pitch : b.pitch;
    if (pitch <= 0 || (a.rows > 1 && b.rows > 1 && a.pitch != b.pitch)) return true;
    // Both repeat with the same period: compare the columns that they cover in it.
    auto const distance = static_cast<index_t>(b.first - a.first);
    index_t const shift = (distance % pitch + pitch) % pitch;
    return !(shift >= a.width && shift + b.width <= pitch);
  }

  char const* operation_;
  int count_ = 0;
  footprint seen_[most_arguments];
};

}  // namespace expar::inline v0::detail
