# SPDX-License-Identifier: Apache-2.0
# Runs DEMO on 1, 2 and 4 ranks, and MPI_DEMO (a command with | for ; and 0 for the number of
# ranks) on 2 and 4. All runs print the same line "checksum: ...".

function(check_run name)
  execute_process(COMMAND ${ARGN} --epochs 2
    OUTPUT_VARIABLE output ERROR_VARIABLE errors RESULT_VARIABLE result)
  if(NOT result EQUAL 0)
    message(FATAL_ERROR "${name} ended with ${result}:\n${output}${errors}")
  endif()
  if(NOT output MATCHES "checksum: *([^\n]+)")
    message(FATAL_ERROR "${name} prints no checksum:\n${output}")
  endif()
  message(STATUS "${name}: ${CMAKE_MATCH_1}")
  if(NOT DEFINED checksum)
    set(checksum "${CMAKE_MATCH_1}" PARENT_SCOPE)
  elseif(NOT checksum STREQUAL CMAKE_MATCH_1)
    message(FATAL_ERROR "${name} has the checksum ${CMAKE_MATCH_1}, the first run had ${checksum}")
  endif()
endfunction()

foreach(ranks 1 2 4)
  check_run("${ranks} threads" "${DEMO}" --ranks ${ranks})
endforeach()
if(DEFINED MPI_DEMO)
  foreach(ranks 2 4)
    string(REPLACE "|0|" "|${ranks}|" command "${MPI_DEMO}")
    string(REPLACE "|" ";" command "${command}")
    check_run("${ranks} processes" ${command})
  endforeach()
endif()
