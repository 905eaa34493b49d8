package Serai::Override;

# exit and fork as the code of tenants sees them. Loaded before all other code:
# an override reaches what is compiled after it.

use v5.36;

our $running = 0;     # pid that runs a CGI script in this moment
our $connection;      # handle of the worker's connection
our @at_exit;         # run when the process exits by exit(), not by _exit

# exit of a persistent script ends the script. `last` leaves evals of the
# script too, as exit must; where it cannot (in a signal handler, a sort sub)
# dying is the next best.
sub leave_script {
    no warnings 'exiting';
    eval { last SERAI_SCRIPT };
    die bless {}, 'Serai::Exit';
}

# A background child must not hold the connection of its worker.
sub fork_closing {
    my $pid = CORE::fork;
    if (defined $pid && $pid == 0 && $connection) {
        close $connection;
        undef $connection;
    }
    return $pid;
}

BEGIN {
    no warnings 'once';
    *CORE::GLOBAL::exit = sub :prototype(;$) {
        leave_script() if $running == $$;
        CORE::exit(@_ ? $_[0] : 0);
    };
    *CORE::GLOBAL::fork = sub :prototype() { fork_closing() };
}

END { $_->() for splice @at_exit }

1;
