# SPDX-License-Identifier: Apache-2.0
# How a program is started on several MPI ranks.
#   expar_mpi_command(<variable> <ranks> <program> [arguments])   the command as a list
#   expar_mpi_test(<name> <ranks> <program> [arguments])          a test that runs it

set(mpi_flags "")
set(mpi_environment "")
if(TARGET expar::mpi)
  execute_process(COMMAND "${MPIEXEC_EXECUTABLE}" --version
    OUTPUT_VARIABLE mpi_version ERROR_VARIABLE mpi_version)
  if(mpi_version MATCHES "Open MPI|OpenRTE")
    # More ranks than cores, as root, and where a container forbids reading a peer's memory.
    set(mpi_flags --oversubscribe)
    set(mpi_environment
      OMPI_ALLOW_RUN_AS_ROOT=1
      OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
      OMPI_MCA_btl_vader_single_copy_mechanism=none)
  endif()
endif()

function(expar_mpi_command variable ranks)
  set(${variable} "${MPIEXEC_EXECUTABLE}" ${mpi_flags} ${MPIEXEC_NUMPROC_FLAG} ${ranks}
    ${MPIEXEC_PREFLAGS} ${ARGN} PARENT_SCOPE)
endfunction()

function(expar_mpi_test name ranks)
  expar_mpi_command(command ${ranks} ${ARGN})
  add_test(NAME ${name} COMMAND ${command})
  set_tests_properties(${name} PROPERTIES
    LABELS mpi PROCESSORS ${ranks} TIMEOUT 300 ENVIRONMENT "${mpi_environment}")
endfunction()
