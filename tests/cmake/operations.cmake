# SPDX-License-Identifier: Apache-2.0
# Every public operation, an object `inline constexpr x_fn x{};`: the comment that editors show for
# it begins with the call, and tests/overlaps/ tries its pairs of tensors.

cmake_minimum_required(VERSION 3.25)

# They write no tensor of the caller's, or take no other.
set(without_pairs
  # a number, a plan, a report or routes of the library's own
  make_plan gather_report route_sparsity route_variable to_variable routes_of_tokens
  count_above cosine_scale_backward score_bins cv_squared device_balance_loss diverse_loss entropy_loss expert_choice_loss load_balance_loss
  orthogonal_loss sequence_balance_loss z_loss
  # tables of the library's own
  even_quotas
  # bytes, and one tensor in place
  all_to_all all_gather start_all_to_all_v sum_counts)

file(GLOB_RECURSE headers "${ROOT}/include/expar/*.hpp" "${ROOT}/include/expar/*.cuh")
file(GLOB overlaps "${ROOT}/tests/overlaps/*.cpp")
set(tried "")
foreach(file IN LISTS overlaps)
  file(READ "${file}" text)
  string(APPEND tried "${text}")
endforeach()
set(count 0)
foreach(header IN LISTS headers)
  file(READ "${header}" text)
  string(REGEX REPLACE "[][;]" " " text "${text}")
  string(REGEX MATCHALL "///[^\n]*\n(///[^\n]*\n)*inline constexpr [a-z_]+_fn [a-z_]+{}" documented "${text}")
  string(REGEX MATCHALL "inline constexpr [a-z_]+_fn [a-z_]+{}" all "${text}")
  list(LENGTH documented with)
  list(LENGTH all of)
  if(NOT with EQUAL of)
    message(SEND_ERROR "${header}: ${with} of ${of} operations have a comment on the variable")
  endif()
  foreach(one IN LISTS documented)
    string(REGEX MATCH "[a-z_]+{}$" name "${one}")
    string(REPLACE "{}" "" name "${name}")
    math(EXPR count "${count} + 1")
    if(NOT one MATCHES "^/// `${name}\\(")
      message(SEND_ERROR "${header}: the comment of ${name} does not begin with its call")
    endif()
    string(FIND "${tried}" "{\"${name}\"," place)
    if(place EQUAL -1 AND NOT name IN_LIST without_pairs AND NOT header MATCHES "/gpu/")
      message(SEND_ERROR "${header}: tests/overlaps/ does not try the tensors of ${name}")
    endif()
  endforeach()
endforeach()
if(count LESS 100)
  message(SEND_ERROR "only ${count} operations were found")
endif()
message(STATUS "${count} operations")
