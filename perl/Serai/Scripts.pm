package Serai::Scripts;

# What a script is compiled in: no variable and no pragma of ours.
sub compile_clean { eval $_[0] }

# Directories of CGI scripts as the code of a site.
#
# A script is run in one of three ways, told from its text before it first runs:
#   inside  compiled once, run in the worker: the rule
#   forked  compiled once, run in a child for each request: what cannot be
#           undone after a request, or shall be sent while it is printed
#   exec    a process for each request, as a plain CGI server does it
# Why a script is not run inside is said once in the log.

use v5.36;
use B ();
use Errno qw(EINTR);
use IO::Handle;
use POSIX ();
use Serai::CGI;
use Serai::Modules;
use Serai::Override;
use Serai::Program;
use Serai::Reply;
use Serai::Script;
use Serai::Symbols;
use Serai::Worker;

use constant PREPARE => 3;    # seconds that compiling may hold up what is loaded

my %SCRIPTS;        # path → Serai::Script
my %SAID;           # path → reason that the log was told
our %BASE;          # the environment that each request's is added to
our $LOG;           # a copy of standard error, which a script may replace

# serve_by makes the site answer by its scripts.
sub serve_by ($site) {
    my @dirs = sort { length $b->[0] <=> length $a->[0] }
        map { my ($prefix, $dir) = split /\0/, $_, 2; [$prefix =~ s{/+\z}{}r, ($dir =~ m{\A/} ? $dir : "$site->{root}/$dir" =~ s{/\.\z}{}r)] } @{ $site->{script} };
    for (@dirs) {
        push @$_, -f $_->[1];    # one script for all beneath the prefix
        die "the directory of scripts $_->[1] does not exist: create it or correct spec.perl.scripts\n" if !-e $_->[1];
    }
    %BASE = %ENV;
    $LOG = $site->{log};
    $LOG->autoflush(1);
    Serai::Override::hide_callers();
    Serai::Program::begin();
    Serai::Symbols::begin();
    Serai::Modules::begin();
    my @waiting;
    $site->{prepare} = sub {
        @waiting = map { $_->[2] ? $_->[1] : scripts_beneath($_->[1]) } @dirs if !@waiting;
        prepare($site, shift @waiting) if @waiting;
        return scalar @waiting;
    };
    $site->{refresh} = sub { Serai::Modules::refresh(\%SCRIPTS) };
    $site->{respond} = sub ($env, $body) {
        my $id = $env->{SERAI_REQUEST} // '';
        respond($site, \@dirs, $env, $body, $id);
    };
}

# respond answers one request. No eval is around the run of a forked script: it
# must see what it would see as a program.
sub respond ($site, $dirs, $env, $body, $id) {
    my $root = $site->{root};
    my ($path, $name, $rest) = find($dirs, $env->{PATH_INFO} // '');
    return Serai::Reply::whole(404, ['Content-Type' => 'text/plain; charset=utf-8'], "404 Not Found\n") if !defined $path;

    Serai::Modules::refresh(\%SCRIPTS);
    my $script = $SCRIPTS{$path};
    if (!$script || defined $script->{error} || !$script->current) {
        $script->discard if $script;
        $script = $SCRIPTS{$path} = compile($site, $path);
    }
    if (defined $script->{error}) {
        print {$LOG} "Serai: request $id: $script->{error}\n";
        return Serai::Reply::fail($id, "$script->{name} does not compile", $script->{error});
    }
    if ($script->{why} && ($SAID{$path} // '') ne $script->{why}) {
        $SAID{$path} = $script->{why};
        print {$LOG} "Serai: $script->{name} runs in a process of its own for each request: $script->{why}\n";
    }
    my %cgi = (%BASE, %$env,
        of_server($site),
        SCRIPT_NAME => ($env->{SCRIPT_NAME} // '') . $name, SCRIPT_FILENAME => $path, PATH_INFO => $rest,
        length $rest ? (PATH_TRANSLATED => "$root$rest") : (),
    );
    delete $cgi{PATH_INFO} if !length $rest;
    $cgi{SERVER_SOFTWARE} //= 'Serai';
    my $result = eval {
        my $input = input($body);
        $script->{mode} eq 'inside' ? run_inside($script, \%cgi, $input, $id) : prepare_child($script, $input);
    };
    if (!$result) { failed($script, $id, $@) }
    elsif (ref $result) { run_child($script, \%cgi, $result, $id) }
}

# failed says why there is no reply, or no more of it.
sub failed ($script, $id, $why) {
    return if $Serai::Reply::gone;
    print {$LOG} "Serai: request $id: $script->{name}: $why";
    Serai::Reply::fail($id, "$script->{name} failed", $why);
}

# of_server are the variables that are the same for all requests.
sub of_server ($site) { return (GATEWAY_INTERFACE => 'CGI/1.1', DOCUMENT_ROOT => $site->{root}, SERVER_SOFTWARE => 'Serai') }

# compile makes a script of a file, the way that the manifest and its text say.
sub compile ($site, $path) {
    my $name = $path =~ s{\A\Q$site->{root}\E/}{}r;
    my $why = !$site->{persistent} ? 'spec.perl.persistent is false'
        : (grep { $_ eq $name } @{ $site->{'per-request'} }) ? 'spec.perl.perRequest names it' : undef;
    Serai::Program::set_environment({ %BASE, of_server($site), SCRIPT_FILENAME => $path }, []);
    return Serai::Script->new($path, $name, $why);
}

# scripts_beneath gives the scripts of a directory.
sub scripts_beneath ($dir) {
    opendir my $list, $dir or return;
    my @names = grep { !/\A\./ } sort readdir $list;
    my @scripts;
    for my $path (map { "$dir/$_" } @names) {
        if (-d $path) { push @scripts, scripts_beneath($path) if !-l $path }
        elsif (-f _ && Serai::Script::is_script($path)) { push @scripts, $path }
    }
    return @scripts;
}

# prepare compiles a script before anybody asks for it. One that cannot be
# compiled is no reason not to serve the others.
sub prepare ($site, $path) {
    return if $SCRIPTS{$path};
    local $SIG{ALRM} = sub { die 'it takes more than ' . PREPARE . " seconds to compile\n" };
    alarm PREPARE;
    my $script = compile($site, $path);
    alarm 0;
    print {$LOG} "Serai: $script->{error}\n" if defined $script->{error};
    $SCRIPTS{$path} = $script if !defined $script->{error};
}

# find divides a path: (file, SCRIPT_NAME, PATH_INFO), or nothing where no
# script is meant. Dotfiles and data are no scripts.
sub find ($dirs, $path) {
    return if $path =~ m{\0|(?:\A|/)\.} || $path =~ /["\n]/;
    for (@$dirs) {
        my ($prefix, $dir, $single) = @$_;
        next if index("$path/", "$prefix/") != 0;
        my $rest = substr $path, length $prefix;
        my $file = $dir;
        return ($file, $prefix, $rest) if $single;
        while ($rest =~ s{\A(/+)([^/]+)}{}) {
            $file .= "/$2";
            stat $file or return;
            next if -d _;
            return if !-f _ || !Serai::Script::is_script($file);
            return ($file, substr($path, 0, length($path) - length $rest), $rest);
        }
        return;
    }
    return;
}

# input gives a handle for standard input.
sub input ($body) {
    if (!defined $body) {
        open my $null, '<', '/dev/null' or die "open /dev/null: $!\n";
        return $null;
    }
    my $file = $body;
    if (ref $body eq 'SCALAR') {
        $file = Serai::Worker::temporary();
        syswrite($file, $$body) // die "keep a request's body: $!\n" if length $$body;
    }
    sysseek $file, 0, 0;
    return $file;
}

# arguments gives @ARGV: the words of a query without "=".
sub arguments ($cgi) {
    my $query = $cgi->{QUERY_STRING} // '';
    return if !length $query || $query =~ /=/ || $cgi->{REQUEST_METHOD} !~ /\A(?:GET|HEAD)\z/;
    return map { s/%([0-9A-Fa-f]{2})/chr hex $1/ger } split /\+/, $query;
}

# run_inside runs a script in this process and sends its output.
sub run_inside ($script, $cgi, $input, $id) {
    my $output = Serai::Worker::temporary();
    Serai::Stream::begin($output) if $script->{streams};
    local $Serai::Override::stuck = sub {
        undef $Serai::Override::stuck;
        local ($/, $,, $\) = ("\n", undef, undef);
        $Serai::Reply::flags = 1;    # the last reply of this worker
        my $error = Serai::Program::end_here($script);
        eval { answer($script, $output, $error, $id); 1 } or failed($script, $id, $@);
        Serai::Worker::leave();
    };
    my $error = Serai::Program::run($script, $cgi, $input, $output, arguments($cgi));
    Serai::Modules::note($script->directory);
    answer($script, $output, $error, $id);
    return 1;
}

# answer sends what a script that ran inside has printed. An error is what it
# died of.
sub answer ($script, $output, $error, $id) {
    if (defined $error) {
        $error .= "\n" if $error !~ /\n\z/;
        print {$LOG} "Serai: request $id: $script->{name} died: $error";
        my $begun = $script->{streams} ? $Serai::Stream::reply->{head} : -s $output;
        return Serai::Reply::fail($id, "$script->{name} died", $error) if !$begun;
    }
    if ($script->{streams}) { Serai::Stream::end() }
    else {
        sysseek $output, 0, 0;
        Serai::CGI::relay($output);
    }
}

# prepare_child makes the pipe between a script's process and the worker.
sub prepare_child ($script, $input) {
    pipe my $read, my $write or die "pipe: $!\n";
    return [$input, $read, $write];
}

# run_child runs a script in a child and sends its output as it comes.
sub run_child ($script, $cgi, $pipe, $id) {
    my ($input, $read, $write) = @$pipe;
    $script->{symbols}->show if $script->{symbols};
    my $pid = Serai::Override::fork_closing();
    if (defined $pid && !$pid) {
        close $read;
        Serai::Program::become($script, $cgi, $input, $write, arguments($cgi));
    }
    close $write;
    close $input;
    local $Serai::Stack::script = $pid ? [$pid, $script->{name}, $script->{mode} eq 'forked'] : undef;
    my $ok = eval {
        die "fork: $!: the plan's number of processes may be used up\n" if !defined $pid;
        Serai::CGI::relay($read);
        1;
    };
    my $why = $@;
    close $read;
    kill TERM => $pid if $pid && (!$ok || $Serai::Reply::gone);
    if ($pid) { 1 while waitpid($pid, 0) == -1 && $! == EINTR }
    failed($script, $id, $why) if !$ok;
}

1;
