// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstring>

#include <expar/communicator.hpp>

namespace expar::inline v0 {

/// One rank, alone. One that disagrees with itself about a size throws `disagreement`.
class self_communicator {
 public:
  static constexpr communicator_traits traits{.checks_sizes = true};

  int rank() const noexcept { return 0; }
  int size() const noexcept { return 1; }

  void all_to_all(host_context const&, void const* in, void* out, std::size_t bytes) const {
    if (bytes != 0) std::memcpy(out, in, bytes);
  }
  void all_gather(host_context const& on, void const* in, void* out, std::size_t bytes) const {
    all_to_all(on, in, out, bytes);
  }
  void barrier(host_context const&) const noexcept {}
  void all_to_all_v(host_context const&, void const* in, byte_counts counts, byte_counts from,
                    void* out, byte_counts out_counts, byte_counts to) const {
    if (counts[0] != out_counts[0])
      detail::fail<disagreement>("all_to_all_v: rank 0 sends ", counts[0],
                                 " bytes to itself but expects ", out_counts[0]);
    if (counts[0] != 0)
      std::memcpy(static_cast<std::byte*>(out) + to[0], static_cast<std::byte const*>(in) + from[0],
                  counts[0]);
  }
};

static_assert(variable_communicator<self_communicator> &&
              collective_communicator<self_communicator>);

}  // namespace expar::inline v0
