# SPDX-License-Identifier: Apache-2.0
# Runs DEMO on threads, and MPI_DEMO (a command with | for ; and 0 for the number of ranks) on
# processes, with FAULT, --skip or --kill, of rank 2 of 4. Every rank that goes on shows its
# sentence, and the training goes on to its end. Where no expert is lost the checksum is that of a
# training without a fault.

function(run_demo name)  # sets output, accuracy and checksum
  execute_process(COMMAND ${ARGN} --epochs 2
    OUTPUT_VARIABLE output ERROR_VARIABLE errors RESULT_VARIABLE result)
  if(NOT result EQUAL 0)
    message(FATAL_ERROR "${name} ended with ${result}:\n${output}${errors}")
  endif()
  foreach(line accuracy checksum)
    if(NOT output MATCHES "${line}: *([0-9a-f.]+)")
      message(FATAL_ERROR "${name} prints no ${line}:\n${output}")
    endif()
    set(${line} "${CMAKE_MATCH_1}" PARENT_SCOPE)
  endforeach()
  string(REPLACE ";" "," output "${output}")  # which would divide a list
  set(output "${output}" PARENT_SCOPE)
endfunction()

# The ranks that hear `sentence` are those of the list `ranks` and no others.
function(expect_heard name ranks sentence)
  string(REGEX MATCHALL "rank +[0-9]+ hears, [0-9.]+ ms after its experts: expar: [^\n]*" lines
    "${output}")
  set(heard "")
  foreach(line IN LISTS lines)
    if(NOT line MATCHES "rank +([0-9]+) hears.*: expar: ${sentence}$")
      message(FATAL_ERROR "${name}: a rank hears something else than '${sentence}':\n${line}")
    endif()
    list(APPEND heard ${CMAKE_MATCH_1})
  endforeach()
  if(NOT heard STREQUAL ranks)
    message(FATAL_ERROR "${name}: '${sentence}' is heard by the ranks ${heard}, not ${ranks}")
  endif()
endfunction()
function(expect name pattern)
  if(NOT output MATCHES "${pattern}")
    message(FATAL_ERROR "${name} does not print '${pattern}':\n${output}")
  endif()
endfunction()
function(expect_same_weights name)
  if(NOT checksum STREQUAL wanted)
    message(FATAL_ERROR "${name} has the checksum ${checksum}, without a fault it is ${wanted}")
  endif()
endfunction()

# `sentence` of a lost rank is what the communicator says.
function(check_fault name sentence)
  set(command ${ARGN})
  if(FAULT STREQUAL "--skip")
    run_demo(${name} ${command} --skip 2)
    string(CONCAT sentence "rank 0 calls combine for its batch [0-9]+ while rank 2 calls prepare, "
      "all ranks call the same operations in the same order")
    expect_heard(${name} "0;1;2;3" "${sentence}")
    expect_same_weights(${name})
  else()
    run_demo(${name} ${command} --kill 2)
    expect_heard(${name} "0;1;3" "${sentence}")
    expect(${name} "\nrank   2   6  7\nlost       4  5\n")
    expect(${name} "dropped routes: [1-9][0-9.]+% \\(experts 4, 5 lost\\)")
    if(accuracy LESS 70)
      message(FATAL_ERROR "${name} has a test accuracy of ${accuracy}%")
    endif()
  endif()
  message(STATUS "${name}: ${accuracy}%")
endfunction()

run_demo("no fault" "${DEMO}" --ranks 1)
set(wanted "${checksum}")
set(left "[a-z_]+: rank 2 has left and will not come")
check_fault("threads" "${left}" "${DEMO}" --ranks 4)
if(FAULT STREQUAL "--kill")
  run_demo("copies" "${DEMO}" --kill 2 --replicas 2)
  expect_heard("copies" "0;1;3" "${left}")
  expect("copies" "dropped routes: 0.00%")
  expect_same_weights("copies")
endif()
if(DEFINED MPI_DEMO)
  string(REPLACE "|0|" "|4|" command "${MPI_DEMO}")
  string(REPLACE "|" ";" command "${command}")
  check_fault("processes" "[a-z_]+: rank 2 did not come within 2000 ms" ${command})
endif()
